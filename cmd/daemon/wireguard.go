package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/wguser"
)

func wireGuardCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "wireguard",
		Short: "Run WireGuard for a node whose kernel has none",
		Long: `Run WireGuard in this process, for a node whose kernel has none, or whose setting
wireguard.implementation is userspace. On all other nodes it does nothing. The
daemon sets the devices up; it can stop and start meanwhile. A second process
takes over from one that runs, without loss, and the first one then waits for
its end. Where the process dies the encrypted traffic stops until the next runs.`,
		Args: cobra.NoArgs,
	}
	var s settingsFlags
	s.addTo(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error { return runWireGuard(c.Context(), &s) }
	return c
}

func runWireGuard(ctx context.Context, flags *settingsFlags) error {
	s, err := flags.read()
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(wireGuardGCPercent)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: s.LogLevel}))
	o := wguser.Options{Dir: wguser.Dir, UAPIDir: wguser.UAPIDir, Log: log}
	userspace, err := isUserspace(s.Encrypt.Implementation)
	if err != nil {
		return err
	}
	if userspace {
		o.Devices = encrypt.Links()
	} else {
		log.Info("this node's WireGuard is the kernel's: there is nothing to do here")
		o.Unwanted = encrypt.Links()
	}
	return wguser.Run(ctx, o)
}

// The data path makes garbage, unlike the daemon: it is collected as usual.
const wireGuardGCPercent = 100

// isUserspace chooses as the daemon does.
func isUserspace(choice encrypt.Implementation) (bool, error) {
	if choice != encrypt.Auto {
		return choice == encrypt.Userspace, nil
	}
	handle, err := rtnl.Open()
	if err != nil {
		return false, err
	}
	defer handle.Close()
	has, err := handle.HasWireGuard()
	if err != nil {
		return false, fmt.Errorf("setting wireguard.implementation is auto: %w", err)
	}
	return !has, nil
}
