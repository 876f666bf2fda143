// Command peer is what runs in the pods of the end-to-end tests: both ends of
// their traffic, static, in an image with nothing else.
//
//	peer serve [-port 8080]          HTTP: /hostname, /client, /blob?bytes=N
//	peer get [-from IP] [-times N] URL  print the body
//	peer ping [-from IP] [-size N] IP  one echo, not fragmented, of N bytes with its IP header
//	peer lookup NAME                 the addresses of a name, a line each
//	peer source IP                   the address that the pod sends from to it
//	peer interfaces                  what the pod has, as JSON
//	peer load [-every 10ms] TARGET...  requests to http://... and echoes to ping://IP;
//	                                 HTTP: /report, /stop
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

var commands = map[string]func(ctx context.Context, args []string) error{
	"serve":      serve,
	"get":        get,
	"ping":       ping,
	"lookup":     lookup,
	"source":     source,
	"interfaces": interfaces,
	"load":       load,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := errors.New("usage: peer serve|get|ping|lookup|source|interfaces|load and its arguments")
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		err = commands[os.Args[1]](ctx, os.Args[2:])
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}
