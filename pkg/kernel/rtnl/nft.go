package rtnl

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/weft-cni/weft/pkg/kernel"
)

// nft opens a socket for one transaction or reading: one that failed half way
// leaves answers behind that the next must not take for its own.
func nft() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetReadDeadline(time.Now().Add(10 * time.Second))
	}))
}

// hooks, by nft's words.
var hooks = map[string]struct {
	typ  nftables.ChainType
	hook *nftables.ChainHook
}{
	"type filter hook prerouting": {nftables.ChainTypeFilter, nftables.ChainHookPrerouting},
	"type nat hook postrouting":   {nftables.ChainTypeNAT, nftables.ChainHookPostrouting},
}

var setTypes = map[string]nftables.SetDatatype{"ipv4_addr": nftables.TypeIPAddr, "ipv6_addr": nftables.TypeIP6Addr}

// families of tables, by nft's words.
var families = map[string]nftables.TableFamily{
	"inet": nftables.TableFamilyINet, "ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6,
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
func printTable(c *nftables.Conn, name string) (*string, []kernel.Element, error) {
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
	var all []kernel.Element
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
		elements, foreign := prefixes(raw)
		if foreign != "" {
			fmt.Fprintf(&b, "# %s holds %s\n", set.Name, foreign)
		}
		for _, p := range elements {
			all = append(all, kernel.Element{Table: name, Set: set.Name, Prefix: p})
		}
	}
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, nil, err
	}
	for _, chain := range chains {
		if chain.Table.Name != table.Name {
			continue
		}
		b.WriteString(printChain(chain))
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range rules {
			fmt.Fprintf(&b, "\t%s\n", printRule(r.Exprs))
		}
		b.WriteString("}\n")
	}
	text := b.String()
	return &text, all, nil
}

func printSet(set *nftables.Set) string {
	flags := ""
	if set.Interval {
		flags = " flags interval;"
	}
	if set.Anonymous || set.IsMap || set.HasTimeout || set.Dynamic {
		flags += " # not ours"
	}
	return fmt.Sprintf("set %s { type %s;%s }\n", set.Name, set.KeyType.Name, flags)
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
// transaction: all of them, or none.
func (h *Handle) applyTable(ops []kernel.Op) []OpError {
	err := func() error {
		c, err := nft()
		if err != nil {
			return err
		}
		for _, op := range ops {
			if err := addTableOp(c, op); err != nil {
				return err
			}
		}
		return c.Flush()
	}()
	if err == nil {
		return nil
	}
	var failed []OpError
	for _, op := range ops {
		failed = append(failed, OpError{Op: op, Err: err})
	}
	return failed
}

func addTableOp(c *nftables.Conn, op kernel.Op) error {
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
		if op.Verb == kernel.Delete {
			return c.SetDeleteElements(set, interval(o.Prefix))
		}
		return c.SetAddElements(set, interval(o.Prefix))
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
		case words[0] == "set" && len(words) == 8:
			typ, known := setTypes[strings.Trim(words[4], ";")]
			if !known {
				return fmt.Errorf("nft: unknown set type in %q", line)
			}
			if err := c.AddSet(&nftables.Set{Table: table, Name: words[1], KeyType: typ, Interval: true}, nil); err != nil {
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

// interval is a prefix as elements of an interval set: its first address, and
// the first behind it unless the address space ends there.
func interval(p netip.Prefix) []nftables.SetElement {
	elements := []nftables.SetElement{{Key: p.Masked().Addr().AsSlice()}}
	if behind := lastAddr(p).Next(); behind.IsValid() {
		elements = append(elements, nftables.SetElement{Key: behind.AsSlice(), IntervalEnd: true})
	}
	return elements
}

// prefixes pairs the elements of an interval set. Intervals that are no
// prefix are told as text.
func prefixes(elements []nftables.SetElement) (all []netip.Prefix, foreign string) {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.IntervalEnd { // one interval ends where the next begins
			return -1
		}
		return 1
	})
	for i, e := range elements {
		if e.IntervalEnd {
			continue
		}
		first := addrOf(e.Key)
		var end netip.Addr // the first address behind, if any
		if i+1 < len(elements) && elements[i+1].IntervalEnd {
			end = addrOf(elements[i+1].Key)
		}
		if p, ok := prefixOf(first, end); ok {
			all = append(all, p)
		} else {
			foreign = fmt.Sprintf("%s-%s", first, end)
		}
	}
	return all, foreign
}

// prefixOf is the prefix that begins at first and ends before end.
func prefixOf(first, end netip.Addr) (netip.Prefix, bool) {
	for bits := 0; bits <= first.BitLen(); bits++ {
		p := netip.PrefixFrom(first, bits)
		if p.Masked().Addr() == first && lastAddr(p).Next() == end {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return addrOf(b)
}

// readElement reads one element of a set.
func (h *Handle) readElement(s kernel.State, k kernel.Key) error {
	part := kernel.State{}
	if err := h.readTable(part, k.Table()); err != nil {
		return err
	}
	s.Merge(part.Only(kernel.Keys{k: {}}))
	return nil
}
