// Weft is the CNI plugin. Container runtimes execute it for each change of a
// pod's network, with the command in CNI_COMMAND and the network configuration
// on standard input; package attach does the work.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/weft-cni/weft/pkg/netconf"
)

// version is set by the linker.
var version = "unknown"

func main() {
	// A runtime that has gone away must not keep an ADD from being undone. No
	// other signal is handled: being killed at any point is.
	signal.Ignore(syscall.SIGPIPE)
	env := netconf.EnvFrom(os.Getenv)
	if env.Command == "" {
		byHand(os.Stdout, os.Args[1:])
		return
	}
	if err := run(context.Background(), env, os.Stdin, os.Stdout, os.Stderr); err != nil {
		os.Exit(1)
	}
}

// byHand answers a person who runs the plugin.
func byHand(out io.Writer, args []string) {
	for _, arg := range args {
		if arg == "--version" || arg == "-version" {
			fmt.Fprintln(out, "weft", version)
			return
		}
	}
	fmt.Fprintf(out, `weft %s, a CNI plugin: it connects pods to the networks of the Weft CNI.

Container runtimes execute it, with CNI_COMMAND and the other variables of the
CNI specification and a network configuration on standard input. It speaks CNI
%s. The node's daemon, weftd, installs it and writes its
configuration to %s/%s.

To see that it works: CNI_COMMAND=VERSION weft
`, version, strings.Join(netconf.Versions, ", "), netconf.ConfDir, netconf.ConfList)
}
