// Command get builds programs of others, where they aren't in the cache, and
// prints their directory, or for policy its path and that of rules for this
// kernel:
//
//	get kubernetes|kubectl|node|plugins|multus|policy|conformance
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/weft-cni/weft/test/programs"
)

var sets = map[string]func(context.Context, io.Writer) (string, error){
	"kubernetes":  programs.Kubernetes,
	"kubectl":     kubectl,
	"node":        programs.Node,
	"plugins":     programs.Plugins,
	"multus":      programs.Multus,
	"policy":      policy,
	"conformance": programs.Conformance,
}

func kubectl(ctx context.Context, log io.Writer) (string, error) {
	path, err := programs.Kubectl(ctx, log)
	return filepath.Dir(path), err
}

// policy prints the program, and rules that it needs on this kernel.
func policy(ctx context.Context, log io.Writer) (string, error) {
	engine, err := programs.NetworkPolicy(ctx, log)
	return strings.TrimSpace(engine.Program + " " + engine.Rules), err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "get:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 || sets[args[0]] == nil {
		return errors.New("usage: get kubernetes|kubectl|node|plugins|multus|policy|conformance")
	}
	dir, err := sets[args[0]](ctx, os.Stderr)
	if err == nil {
		_, err = fmt.Println(dir)
	}
	return err
}
