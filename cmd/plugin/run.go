package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/veth"
)

// run carries out one command and reports an error the way the CNI
// specification wants it: as JSON on out, where else the result goes.
func run(ctx context.Context, env netconf.Env, in io.Reader, out, logTo io.Writer) error {
	if env.Command == netconf.Version {
		return printVersions(out)
	}
	config, err := io.ReadAll(in)
	if err != nil {
		err = fmt.Errorf("%w: read the network configuration: %w", attach.ErrIO, err)
	}
	var n *netconf.Network
	if err == nil {
		n, err = parse(config, env)
	}
	log, done := logger(n, env, logTo)
	defer done()
	if err == nil {
		err = dispatch(ctx, log, n, out)
	}
	if err != nil {
		log.Error("command ended with an error", "error", err)
		if unheard := printError(out, config, err); unheard != nil {
			log.Error("error not printed", "error", unheard)
		}
	}
	return err
}

// parse reads the configuration and refuses commands that its version doesn't
// have.
func parse(config []byte, env netconf.Env) (*netconf.Network, error) {
	n, err := netconf.Parse(config, env)
	if err != nil {
		return nil, err
	}
	first := map[string]string{netconf.Check: "0.4.0", netconf.GC: "1.1.0", netconf.Status: "1.1.0"}[env.Command]
	if slices.Index(netconf.Versions, n.CNIVersion) >= slices.Index(netconf.Versions, first) {
		return n, nil
	}
	return nil, &netconf.InputError{
		Kind: netconf.ErrVersion, Key: "cniVersion", Value: fmt.Sprintf("%q", n.CNIVersion),
		Want: first + " or later for " + env.Command,
	}
}

func dispatch(ctx context.Context, log *slog.Logger, n *netconf.Network, out io.Writer) error {
	bootID, err := netconf.BootID(netconf.BootIDFile)
	if err != nil {
		return err
	}
	node, err := veth.Open()
	if err != nil {
		return err
	}
	defer node.Close()
	p := &attach.Plugin{Log: log, BootID: bootID, Node: node}
	switch n.Env.Command {
	case netconf.Add:
		return add(ctx, p, n, out)
	case netconf.Del:
		return p.Detach(ctx, n)
	case netconf.Check:
		return p.Check(ctx, n)
	case netconf.GC:
		return p.Collect(ctx, n)
	case netconf.Status:
		return p.Status(ctx, n)
	}
	return fmt.Errorf("no such command: %s", n.Env.Command) // Parse lets none through
}

// add attaches and prints the result. One that can't be delivered is no
// attachment to the runtime, so it is undone.
func add(ctx context.Context, p *attach.Plugin, n *netconf.Network, out io.Writer) error {
	result, err := p.Attach(ctx, n)
	if err != nil {
		return err
	}
	if _, err = out.Write(result); err == nil {
		return nil
	}
	err = fmt.Errorf("%w: print the result: %w", attach.ErrIO, err)
	if undo := p.Detach(context.WithoutCancel(ctx), n); undo != nil {
		err = fmt.Errorf("%w; then, to detach again: %w", err, undo)
	}
	return err
}

// logger writes to n's log file, or to logTo where there is none or it can't
// be opened. Without a configuration n is nil.
func logger(n *netconf.Network, env netconf.Env, logTo io.Writer) (log *slog.Logger, done func()) {
	var options slog.HandlerOptions
	var fault error
	done = func() {}
	if n != nil {
		options.Level = n.LogLevel
	}
	if n != nil && n.LogFile != "" {
		var f *os.File
		if f, fault = os.OpenFile(n.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640); fault == nil {
			logTo, done = f, func() { f.Close() }
		}
	}
	log = slog.New(slog.NewTextHandler(logTo, &options)).With(
		"command", env.Command, "container", env.ContainerID, "interface", env.IfName,
	)
	if fault != nil {
		log.Warn("logging to standard error", "error", fault)
	}
	return log, done
}

// printVersions answers VERSION. What is on standard input doesn't matter to
// it, so it isn't waited for.
func printVersions(out io.Writer) error {
	newest := netconf.Versions[len(netconf.Versions)-1]
	return json.NewEncoder(out).Encode(struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}{newest, netconf.Versions})
}

// printError prints the error object of the CNI specification (section 5,
// "Error").
func printError(out io.Writer, config []byte, err error) error {
	var asked struct {
		CNIVersion string `json:"cniVersion"`
	}
	// A configuration that can't be read has no version to answer in.
	if json.Unmarshal(config, &asked) != nil || !slices.Contains(netconf.Versions, asked.CNIVersion) {
		asked.CNIVersion = netconf.Versions[len(netconf.Versions)-1]
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "    ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{asked.CNIVersion, attach.Report(err)})
}
