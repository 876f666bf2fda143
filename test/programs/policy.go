package programs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Policy is a policy engine: kube-network-policies.
type Policy struct {
	Program string // path
	// Rules is a file for nft, to be loaded on nodes, with what stands for parts
	// that the kernel lacks; empty where it has all.
	Rules string
}

// NetworkPolicy gives the policy engine that hack/network-policy names, built
// where that has changed. Where the kernel has no nft_queue, it is the same but
// for one file of a library that it uses. It needs root.
func NetworkPolicy(ctx context.Context, log io.Writer) (Policy, error) {
	b, err := toolBuilder(log, "network-policy")
	if err != nil {
		return Policy{}, err
	}
	// Also where another is used: make test-vm has a kernel that has all, and no
	// time to build.
	const title, program = "policy", "standard"
	dir, err := b.tools(ctx, title, "about two minutes")
	if err != nil {
		return Policy{}, err
	}
	queues, err := hasQueue()
	if err != nil || queues {
		return Policy{Program: filepath.Join(dir, program)}, err
	}
	if err = b.replaceQueue(ctx); err != nil {
		return Policy{}, err
	}
	dir, err = b.tools(ctx, title+"-xtables", "less than a minute", replacement)
	return Policy{Program: filepath.Join(dir, program), Rules: filepath.Join(b.module, "labels.nft")}, err
}

// replacement takes the place of expr/queue.go of google/nftables.
const replacement = "queue.go.replacement"

// replaceQueue builds with a copy of google/nftables, by a go.mod that says so.
func (b *builder) replaceQueue(ctx context.Context) error {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{ .Dir }}", "github.com/google/nftables")
	list.Dir = b.module
	library, err := list.Output()
	if err != nil {
		return fmt.Errorf("find google/nftables in %s: %w", b.module, err)
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	patched := filepath.Join(b.cache, "nftables")
	if err := os.RemoveAll(patched); err != nil {
		return err
	}
	if err := os.CopyFS(patched, os.DirFS(strings.TrimSpace(string(library)))); err != nil {
		return err
	}
	queue := filepath.Join(patched, "expr", "queue.go")
	mod := filepath.Join(b.cache, "patched.mod")
	files := map[string]string{replacement: queue, "go.mod": mod, "go.sum": strings.TrimSuffix(mod, "mod") + "sum"}
	for from, to := range files {
		data, err := os.ReadFile(filepath.Join(b.module, from))
		if err != nil {
			return err
		}
		if to == mod {
			data = append(data, "\nreplace github.com/google/nftables => "+patched+"\n"...)
		}
		if err := errors.Join(os.RemoveAll(to), os.WriteFile(to, data, 0o644)); err != nil {
			return err
		}
	}
	b.flags = []string{"-modfile", mod}
	return nil
}

// hasQueue tells whether the kernel has nft_queue, by a rule in a network
// namespace of its own. It needs root.
func hasQueue() (has bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, and the namespace
		// with the thread.
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("new network namespace: %w", err)
			return
		}
		has, err = queueRule()
	}()
	<-done
	return has, err
}

func queueRule() (accepted bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	table := conn.AddTable(&nftables.Table{Name: "t", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{
		Name: "c", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Queue{}}})
	switch err := conn.Flush(); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	default:
		return false, fmt.Errorf("add a rule: %w", err)
	}
}
