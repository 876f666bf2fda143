package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/leak"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/overlay"
)

// leakTest is what its flags say.
type leakTest struct {
	pods       []string
	interfaces []string
	duration   time.Duration
	runDir     string
	settings   settingsFlags
}

func leakTestCommand() *cobra.Command {
	var l leakTest
	c := &cobra.Command{
		Use:   "leak-test",
		Short: "Look for packets of pods that leave this node in clear",
		Long: `Look at all packets that come and go by this node's interfaces, and count those
of WireGuard, and those from or to pods that anybody on the way could read, also
within VXLAN. The exit code is 0 where none of these was seen, and 1 otherwise.
It needs CAP_NET_RAW and the host's network, and changes nothing.`,
		Args: cobra.NoArgs,
	}
	f := c.Flags()
	f.StringSliceVar(&l.pods, "pod-cidrs", nil, "address ranges of pods (default: those of this node, one end of all of its pods' traffic)")
	f.StringSliceVar(&l.interfaces, "interfaces", nil, "interfaces to listen on (default: all that are up, but for Weft's own)")
	f.DurationVar(&l.duration, "duration", 30*time.Second, "how long to listen; ^C ends it earlier")
	f.StringVar(&l.runDir, "run-dir", netconf.RunDir, "directory with the node file, which has the pods' ranges")
	l.settings.addTo(f)
	c.RunE = func(c *cobra.Command, _ []string) error { return l.run(c.Context(), c.OutOrStdout()) }
	return c
}

func (l *leakTest) run(ctx context.Context, out io.Writer) error {
	network, err := l.network()
	if err != nil {
		return err
	}
	if len(l.interfaces) == 0 {
		if l.interfaces, err = leak.Interfaces(isOwn); err != nil {
			return err
		}
	}
	capture, err := leak.Start(network, l.interfaces...)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Listening for %s on %s to packets of pods in %s\n\n", l.duration, strings.Join(l.interfaces, ", "), joined(network.Pods))
	select {
	case <-time.After(l.duration):
	case <-ctx.Done():
	}
	report, err := capture.Stop()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n", report)
	if n := report.Leaks(); n > 0 {
		return fmt.Errorf("%d packets of pods could be read", n)
	}
	fmt.Fprintln(out, "No packet of a pod could be read.")
	if report.Encrypted() == 0 {
		fmt.Fprintln(out, "None of WireGuard's was seen either: did pods talk to pods on other nodes meanwhile?")
	}
	return nil
}

// network is what packets are judged by.
func (l *leakTest) network() (*leak.Net, error) {
	s, err := l.settings.read()
	if err != nil {
		return nil, err
	}
	n := &leak.Net{}
	for i := range uint16(encrypt.Ports) {
		n.WireGuardPorts = append(n.WireGuardPorts, s.Encrypt.Port+i)
	}
	for _, text := range l.pods {
		p, e := netip.ParsePrefix(text)
		if e != nil {
			return nil, fmt.Errorf("flag --pod-cidrs is %q; accepted: a list of address ranges such as 10.244.0.0/16", text)
		}
		n.Pods = append(n.Pods, p.Masked())
	}
	if len(n.Pods) > 0 {
		return n, nil
	}
	boot, err := netconf.BootID(netconf.BootIDFile)
	if err != nil {
		return nil, err
	}
	node, err := netconf.ReadNode(l.runDir, boot)
	if err != nil {
		return nil, fmt.Errorf("which addresses pods have is not known without --pod-cidrs: %w", err)
	}
	n.Pods = slices.Clone(node.PodCIDRs)
	return n, nil
}

// isOwn reports whether packets on an interface have not left the node.
func isOwn(name string) bool {
	return strings.HasPrefix(name, netconf.LinkStart) || strings.HasPrefix(name, overlay.WireGuardStart) || name == overlay.Link
}

func joined(ranges []netip.Prefix) string {
	texts := make([]string, 0, len(ranges))
	for _, r := range ranges {
		texts = append(texts, r.String())
	}
	return strings.Join(texts, ", ")
}
