package main

import (
	"bytes"
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
	} else {
		err = perform(ctx, env, config, out, logTo)
	}
	if err != nil {
		printError(out, config, err)
	}
	return err
}

func perform(ctx context.Context, env netconf.Env, config []byte, out, logTo io.Writer) error {
	n, err := netconf.Parse(config, env)
	if err != nil {
		return err
	}
	if err := since(n); err != nil {
		return err
	}
	log, done := logger(n, logTo)
	defer done()
	bootID, err := netconf.BootID(netconf.BootIDFile)
	if err != nil {
		return err
	}
	p := &attach.Plugin{Log: log, BootID: bootID}
	if err := dispatch(ctx, p, n, out); err != nil {
		log.Error("command not carried out", "error", err)
		return err
	}
	return nil
}

func dispatch(ctx context.Context, p *attach.Plugin, n *netconf.Network, out io.Writer) error {
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
	var text bytes.Buffer
	if err = result.PrintTo(&text); err == nil {
		_, err = out.Write(text.Bytes())
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%w: print the result: %w", attach.ErrIO, err)
	if undo := p.Detach(context.WithoutCancel(ctx), n); undo != nil {
		err = fmt.Errorf("%w; then, to detach again: %w", err, undo)
	}
	return err
}

// since refuses commands that the configuration's version doesn't have.
func since(n *netconf.Network) error {
	first := map[string]string{netconf.Check: "0.4.0", netconf.GC: "1.1.0", netconf.Status: "1.1.0"}[n.Env.Command]
	from := slices.Index(netconf.Versions, first)
	if slices.Index(netconf.Versions, n.CNIVersion) >= from {
		return nil
	}
	return &netconf.InputError{
		Kind: netconf.ErrVersion, Key: "cniVersion", Value: fmt.Sprintf("%q", n.CNIVersion),
		Want: first + " or later for " + n.Env.Command,
	}
}

// logger writes to n's log file, or to logTo where it has none or that can't
// be opened.
func logger(n *netconf.Network, logTo io.Writer) (log *slog.Logger, done func()) {
	done = func() {}
	var fault error
	if n.LogFile != "" {
		f, err := os.OpenFile(n.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err == nil {
			logTo, done = f, func() { f.Close() }
		}
		fault = err
	}
	log = slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: n.LogLevel})).With(
		"command", n.Env.Command, "network", n.Name, "container", n.Env.ContainerID, "interface", n.Env.IfName,
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
// "Error"). Where not even that can be printed, the exit code has to do.
func printError(out io.Writer, config []byte, err error) {
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
	_ = encoder.Encode(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{asked.CNIVersion, attach.Report(err)})
}
