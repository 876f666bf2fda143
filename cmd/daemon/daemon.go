package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/weft-cni/weft/pkg/agent"
	"github.com/weft-cni/weft/pkg/attach"
	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/settings"
	"github.com/weft-cni/weft/pkg/sriov"
	"github.com/weft-cni/weft/pkg/veth"
	"github.com/weft-cni/weft/pkg/wguser"
)

// daemon is what the flags say.
type daemon struct {
	kubeconfig, node, installFrom, procSys, sysfs string

	once, plan bool
	settings   settingsFlags
}

func (d *daemon) run(ctx context.Context, out io.Writer) error {
	switch {
	case d.plan && !d.once:
		return errors.New("flag --plan is set without --once; accepted: both")
	case d.node == "":
		return errNoNodeName
	}
	s, err := d.settings.read()
	if err != nil {
		return err
	}
	log := newLogger(s.LogLevel)
	api, err := d.restConfig()
	if err != nil {
		return err
	}
	boot, err := netconf.BootID(netconf.BootIDFile)
	if err != nil {
		return err
	}
	handle, err := rtnl.OpenAt(d.procSys)
	if err != nil {
		return err
	}
	defer handle.Close()
	a, err := agent.New(agent.Options{
		Node: d.node, Settings: s, API: api, Kernel: handle, Log: log, Version: version,
		InstallFrom: d.installFrom, RunDir: netconf.RunDir, DataDir: netconf.DataDir, BootID: boot,
	})
	if err != nil {
		return err
	}
	log.Info("weftd starts", "version", version, "node", d.node)
	switch {
	case d.plan:
		return a.Plan(ctx, out)
	case d.once:
		return a.Once(ctx)
	}
	go d.sweep(ctx, log, boot, s.Resync)
	if err := a.Run(ctx); err != nil {
		return err
	}
	log.Info("weftd ends; the kernel stays as it is")
	return nil
}

// sweep gives back, at the start and from time to time, what pods had that went
// without a DEL. What fails is for the next time, or for a GC or DEL.
func (d *daemon) sweep(ctx context.Context, log *slog.Logger, bootID string, every time.Duration) {
	node, err := veth.Open()
	if err != nil {
		log.Error("nothing of pods that went without a DEL is given back", "err", err)
		return
	}
	defer node.Close()
	p := &attach.Plugin{Log: log, BootID: bootID, Node: node, Sysfs: sriov.Sysfs{Root: d.sysfs}}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for first := true; ctx.Err() == nil; first = false {
		if err := p.Sweep(ctx, &netconf.Network{DataDir: netconf.DataDir, RunDir: netconf.RunDir}); err != nil {
			log.Warn("not all that pods had which have gone is given back", "err", err)
		} else if first {
			log.Info("what pods had that have gone is given back", "devices", d.sysfs != "")
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// sweepPods is one such sweep, of pods without devices.
func sweepPods(ctx context.Context, log *slog.Logger) error {
	boot, err := netconf.BootID(netconf.BootIDFile)
	if err != nil {
		return err
	}
	node, err := veth.Open()
	if err != nil {
		return err
	}
	defer node.Close()
	p := &attach.Plugin{Log: log, BootID: boot, Node: node}
	return p.Sweep(ctx, &netconf.Network{DataDir: netconf.DataDir, RunDir: netconf.RunDir})
}

func (d *daemon) restConfig() (c *rest.Config, err error) {
	if d.kubeconfig == "" {
		c, err = rest.InClusterConfig()
	} else {
		c, err = clientcmd.BuildConfigFromFlags("", d.kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	c.UserAgent = "weftd/" + version
	return c, nil
}

// newLogger logs to standard error, and client-go's logs with it.
func newLogger(level slog.Level) *slog.Logger {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	klog.SetSlogLogger(log.With("from", "client-go"))
	return log
}

func cleanupCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from this node everything that Weft made",
		Long: `Remove from this node everything that Weft made: the network configuration,
links, routes and nftables table, records and, where no pod needs it any more,
the plugin. Pods on the cluster network lose it. The daemon must not run.`,
		Args: cobra.NoArgs,
	}
	var s settingsFlags
	s.addTo(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		parsed, err := s.read()
		if err != nil {
			return err
		}
		handle, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer handle.Close()
		out := c.OutOrStdout()
		// What is attached no more needs no plugin.
		swept := sweepPods(c.Context(), newLogger(parsed.LogLevel))
		return errors.Join(swept, agent.Cleanup(handle, agent.Places{
			CNI: parsed.CNI, RunDir: netconf.RunDir, DataDir: netconf.DataDir,
		}, out), wguser.RemoveSockets(wguser.HostUAPIDir, encrypt.Links(), out))
	}
	return c
}

// flagSet is what settingsFlags needs of pflag.
type flagSet interface {
	StringVar(p *string, name, value, usage string)
	Var(value pflag.Value, name, usage string)
}

// settingFlag notes a setting that a flag gives. settings.Parse judges it,
// together with all others.
type settingFlag struct {
	key string
	to  *[]settings.Flag
}

func (f *settingFlag) Set(value string) error {
	*f.to = append(*f.to, settings.Flag{Key: f.key, Value: value})
	return nil
}

func (f *settingFlag) String() string { return "" }

// Type names the value in the usage text.
func (f *settingFlag) Type() string { return "value" }
