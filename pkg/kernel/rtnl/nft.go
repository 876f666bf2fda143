package rtnl

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel"
)

// nft opens a socket for one transaction or reading: one that failed half way
// leaves answers behind that the next must not take for its own.
func nft() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetReadDeadline(deadline())
	}))
}

// nftPatience is how long the kernel may take to answer: a first transaction
// loads its modules.
const nftPatience = 30 * time.Second

func deadline() time.Time { return time.Now().Add(nftPatience) }

// hooks, by nft's words.
var hooks = map[string]struct {
	typ  nftables.ChainType
	hook *nftables.ChainHook
}{
	"type filter hook prerouting":  {nftables.ChainTypeFilter, nftables.ChainHookPrerouting},
	"type filter hook input":       {nftables.ChainTypeFilter, nftables.ChainHookInput},
	"type filter hook output":      {nftables.ChainTypeFilter, nftables.ChainHookOutput},
	"type filter hook forward":     {nftables.ChainTypeFilter, nftables.ChainHookForward},
	"type filter hook postrouting": {nftables.ChainTypeFilter, nftables.ChainHookPostrouting},
	"type nat hook postrouting":    {nftables.ChainTypeNAT, nftables.ChainHookPostrouting},
}

// families of tables, by nft's words.
var families = map[string]nftables.TableFamily{
	"inet": nftables.TableFamilyINet, "ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6,
	"bridge": nftables.TableFamilyBridge,
}

// tableOf reads a family and a name.
func tableOf(name string) (*nftables.Table, error) {
	word, rest, _ := strings.Cut(name, " ")
	family, known := families[word]
	if !known || rest == "" {
		return nil, fmt.Errorf("%q is not a table's family and name", name)
	}
	return &nftables.Table{Family: family, Name: rest}, nil
}

// readTable puts the table's rules and its sets' elements into s, if there is
// such a table.
func (h *Handle) readTable(s kernel.State, name string) error {
	c, err := nft()
	if err != nil {
		return fmt.Errorf("read table %s: %w", name, err)
	}
	text, elements, err := printTable(c, name)
	if err != nil {
		return fmt.Errorf("read table %s: %w", name, err)
	}
	if text != nil {
		s.Put(kernel.Rules{Table: name, Text: *text})
	}
	for _, e := range elements {
		s.Put(e)
	}
	return nil
}

// printTable gives the table in the form of kernel.Rules, nil when it doesn't
// exist, and the elements of its sets.
func printTable(c *nftables.Conn, name string) (*string, []kernel.Object, error) {
	wanted, err := tableOf(name)
	if err != nil {
		return nil, nil, err
	}
	tables, err := c.ListTablesOfFamily(wanted.Family)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == wanted.Name })
	if i < 0 {
		return nil, nil, nil
	}
	table := tables[i]
	var b strings.Builder
	var all []kernel.Object
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, nil, err
	}
	for _, set := range sets {
		b.WriteString(printSet(set))
		raw, e := c.GetSetElements(set)
		if e != nil {
			return nil, nil, e
		}
		if ofLinks(set) {
			for _, e := range raw {
				if o, ok := source(name, set.Name, e); ok {
					all = append(all, o)
				}
			}
			continue
		}
		elements, foreign := prefixes(raw)
		if foreign != "" {
			fmt.Fprintf(&b, "# %s holds %s\n", set.Name, foreign)
		}
		for _, p := range elements {
			all = append(all, kernel.Element{Table: name, Set: set.Name, Prefix: p})
		}
	}
	if err = printChains(&b, c, table); err != nil {
		return nil, nil, err
	}
	text := b.String()
	return &text, all, nil
}

// printChains prints a table's chains with their rules.
func printChains(b *strings.Builder, c *nftables.Conn, table *nftables.Table) error {
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if chain.Table.Name != table.Name {
			continue
		}
		b.WriteString(printChain(chain))
		rules, err := readRules(chain)
		if err != nil {
			return err
		}
		for _, exprs := range rules {
			fmt.Fprintf(b, "\t%s\n", printRule(exprs))
		}
		b.WriteString("}\n")
	}
	return nil
}

func printChain(chain *nftables.Chain) string {
	for words, h := range hooks {
		if chain.Hooknum != nil && chain.Type == h.typ && *chain.Hooknum == *h.hook && chain.Priority != nil {
			policy := "accept"
			if chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop {
				policy = "drop"
			}
			return fmt.Sprintf("chain %s { %s priority %d; policy %s;\n", chain.Name, words, *chain.Priority, policy)
		}
	}
	return fmt.Sprintf("chain %s { # not ours\n", chain.Name)
}

// applyTable carries out all operations on tables and elements in one
// transaction: all of them, or none. Tables that the library can't send have
// transactions of their own.
func (h *Handle) applyTable(all []kernel.Op) (failed []OpError) {
	note := func(op kernel.Op, err error) {
		if err != nil {
			failed = append(failed, OpError{Op: op, Err: err})
		}
	}
	ops := slices.DeleteFunc(slices.Clone(all), sendsItself)
	err := transact(ops)
	if errors.Is(err, unix.ENOENT) && slices.ContainsFunc(ops, deletesElement) {
		// All or nothing: what somebody else deleted meanwhile is gone already.
		for _, op := range ops {
			if deletesElement(op) {
				if alone := transact([]kernel.Op{op}); !isGone(alone) {
					note(op, alone)
				}
			}
		}
		ops = slices.DeleteFunc(ops, deletesElement)
		err = transact(ops)
	}
	for _, op := range ops {
		note(op, err)
	}
	for _, op := range all {
		if sendsItself(op) {
			note(op, sendTable(op.Want))
		}
	}
	return failed
}

func deletesElement(op kernel.Op) bool {
	return op.Verb == kernel.Delete && op.Key().Kind == kernel.KindElement
}

// transact does all of the operations, or none.
func transact(ops []kernel.Op) error {
	if len(ops) == 0 {
		return nil
	}
	c, err := nft()
	if err != nil {
		return err
	}
	for len(ops) > 0 {
		n := sameSet(ops)
		if err := addTableOps(c, ops[:n]); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return c.Flush()
}

// elementsPerMessage keeps a message's list of elements below 64 KiB, which is
// all that an attribute can hold. One message an element would fill the
// socket's buffer with acknowledgements.
const elementsPerMessage = 400

// sameSet is how many operations, from the first on, one message can do.
func sameSet(ops []kernel.Op) int {
	first := ops[0]
	n := 1
	for n < min(len(ops), elementsPerMessage) && first.Key().Kind == kernel.KindElement && ops[n].Key().Kind == kernel.KindElement &&
		setOf(ops[n]) == setOf(first) && (ops[n].Verb == kernel.Delete) == (first.Verb == kernel.Delete) {
		n++
	}
	return n
}

// setOf names an element's table and set.
func setOf(op kernel.Op) string {
	name, _, _ := strings.Cut(op.Key().Name, "@")
	return name
}

// addTableOps adds an operation on a table, or several on one of its sets.
func addTableOps(c *nftables.Conn, ops []kernel.Op) error {
	op := ops[0]
	switch o := either(op).(type) {
	case kernel.Rules:
		table, err := tableOf(o.Table)
		if err != nil {
			return err
		}
		// Add, delete, add: works whether or not it is there, and a packet
		// sees either the old table or the new one.
		c.AddTable(table)
		c.DelTable(table)
		if op.Verb == kernel.Delete {
			return nil
		}
		c.AddTable(table)
		return compileTable(c, table, o.Text)
	case kernel.Element:
		table, err := tableOf(o.Table)
		if err != nil {
			return err
		}
		set := &nftables.Set{Table: table, Name: o.Set, Interval: true}
		var elements []nftables.SetElement
		for _, op := range ops {
			if e, ok := either(op).(kernel.Element); ok {
				elements = append(elements, interval(e.Prefix)...)
			}
		}
		if op.Verb == kernel.Delete {
			return c.SetDeleteElements(set, elements)
		}
		return c.SetAddElements(set, elements)
	case kernel.Source:
		table, err := tableOf(o.Table)
		if err != nil {
			return err
		}
		set := &nftables.Set{Table: table, Name: o.Set}
		var elements []nftables.SetElement
		for _, op := range ops {
			if e, ok := either(op).(kernel.Source); ok {
				elements = append(elements, sourceElement(e))
			}
		}
		if op.Verb == kernel.Delete {
			return c.SetDeleteElements(set, elements)
		}
		return c.SetAddElements(set, elements)
	default:
		return fmt.Errorf("%T is not part of a table", o)
	}
}

func either(op kernel.Op) kernel.Object {
	if op.Verb == kernel.Delete {
		return op.Have
	}
	return op.Want
}

// compileTable adds what text describes (kernel.Rules has the form).
func compileTable(c *nftables.Conn, table *nftables.Table, text string) error {
	var chain *nftables.Chain
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "}":
			chain = nil
		case chain != nil:
			exprs, err := compileRule(line)
			if err != nil {
				return err
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		case words[0] == "set":
			set, err := compileSet(table, line)
			if err != nil {
				return err
			}
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		case words[0] == "chain":
			var err error
			if chain, err = compileChain(table, line); err != nil {
				return err
			}
			c.AddChain(chain)
		default:
			return fmt.Errorf("nft: unknown line %q", line)
		}
	}
	return nil
}

func compileChain(table *nftables.Table, line string) (*nftables.Chain, error) {
	for words, h := range hooks {
		var name string
		var priority int
		if n, _ := fmt.Sscanf(line, "chain %s { "+words+" priority %d; policy accept;", &name, &priority); n == 2 {
			accept := nftables.ChainPolicyAccept
			return &nftables.Chain{
				Name: name, Table: table, Type: h.typ, Hooknum: h.hook,
				Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)), Policy: &accept,
			}, nil
		}
	}
	return nil, fmt.Errorf("nft: unknown chain %q", line)
}
