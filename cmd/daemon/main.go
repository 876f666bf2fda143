// Command weftd is Weft's node daemon: it keeps the kernel's side of the
// cluster network as the API's objects ask for, and publishes this node's
// part.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/settings"
)

// version is set by the linker.
var version = "unknown"

// Memory is small by itself (docs/benchmarks.md): a collector that runs when
// the heap has grown by half, and not to twice its size, keeps it so.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "weftd:", err)
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// command is weftd with its subcommands.
func command() *cobra.Command {
	var d daemon
	root := &cobra.Command{
		Use:   "weftd",
		Short: "Weft's node daemon",
		Long: `Weft's node daemon keeps this node's part of the cluster network: a VXLAN
device with a route, a neighbour and an FDB entry for each peer, as the VTEP
objects of the API say. A stop leaves all traffic running.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,

		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:              func(c *cobra.Command, _ []string) error { return d.run(c.Context(), c.OutOrStdout()) },
	}
	f := root.Flags()
	f.StringVar(&d.kubeconfig, "kubeconfig", "", "file with the API server's address and credentials (default: the pod's service account)")
	f.StringVar(&d.node, "node-name", os.Getenv("NODE_NAME"), "name of this node's Node object (default: $NODE_NAME)")
	f.StringVar(&d.installFrom, "install-from", "", "directory with the plugin weft, to be installed into cni.binDir (default: it is not installed)")
	f.StringVar(&d.procSys, "proc-sys", rtnl.ProcSys, "directory of the kernel's sysctls, where they can be written")
	f.StringVar(&d.sysfs, "sysfs", "", "directory of the kernel's sysfs: at the start, restore the VFs of pods that have gone (default: they wait for DEL or GC)")
	f.BoolVar(&d.once, "once", false, "bring this node in order once, and exit; the exit code tells whether it is")
	f.BoolVar(&d.plan, "plan", false, "with --once: only print the operations that it would take")
	d.settings.addTo(root.Flags())
	root.AddCommand(versionCommand(), cleanupCommand(), wireGuardCommand(), leakTestCommand(), pauseCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), "weftd", version) },
	}
}

// pauseCommand keeps a pod alive whose init container has done the work, in an
// image that has no other program.
func pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "pause",
		Short:  "Do nothing until SIGTERM",
		Args:   cobra.NoArgs,
		Hidden: true,
		Run:    func(c *cobra.Command, _ []string) { <-c.Context().Done() },
	}
}

// settingsFlags are the settings file and the flags over it, one for each key.
type settingsFlags struct {
	file  string
	flags []settings.Flag
}

func (s *settingsFlags) addTo(f flagSet) {
	f.StringVar(&s.file, "config", s.file, "settings file; each key has a flag, and flags win")
	for _, k := range settings.Keys() {
		f.Var(&settingFlag{key: k.Name, to: &s.flags}, settings.FlagName(k.Name), k.Doc+" ("+k.Takes+")")
	}
}

// read gives the settings that the file and the flags make.
func (s *settingsFlags) read() (settings.Settings, error) {
	var data []byte
	if s.file != "" {
		var err error
		if data, err = os.ReadFile(s.file); err != nil {
			return settings.Settings{}, fmt.Errorf("settings: %w", err)
		}
	}
	parsed, err := settings.Parse(data, s.flags)
	if err != nil {
		return settings.Settings{}, err
	}
	return parsed, nil
}

var errNoNodeName = errors.New("flag --node-name is missing; accepted: the name of this node's Node object, also in $NODE_NAME")
