package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// requestTimeout is after what a request counts as lost.
const requestTimeout = 3 * time.Second

func serve(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	port := f.Int("port", 8080, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	return listen(ctx, *port, answers())
}

// answers are those of a server to be tested with.
func answers() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname() // an empty one is told as such
		fmt.Fprint(w, name)
	})
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, netip.MustParseAddrPort(r.RemoteAddr).Addr().Unmap())
	})
	mux.HandleFunc("/blob", func(w http.ResponseWriter, r *http.Request) {
		size, err := strconv.Atoi(r.FormValue("bytes"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = w.Write(make([]byte, size)) // the client sees how much came
	})
	return mux
}

// listen serves until ctx ends.
func listen(ctx context.Context, port int, handler http.Handler) error {
	server := &http.Server{Addr: fmt.Sprintf(":%d", port), Handler: handler, ReadHeaderTimeout: requestTimeout}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	fmt.Println("serving on port", port)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func get(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("get", flag.ContinueOnError)
	from := f.String("from", "", "")
	times := f.Int("times", 1, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	dialer := &net.Dialer{}
	if *from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(*from)}
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	for range *times {
		if err := getOne(ctx, client, f.Arg(0)); err != nil {
			return err
		}
	}
	return nil
}

// getOne prints a body and, since it may be one of several, ends the line.
func getOne(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := fetch(ctx, client, url, os.Stdout); err != nil {
		return err
	}
	_, err := fmt.Println()
	return err
}

// fetch copies the answer's body.
func fetch(ctx context.Context, client *http.Client, url string, to io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(to, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// source prints the address that the pod would send from to another: that of the
// interface which its routes lead through.
func source(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("source: an address is needed")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort(args[0], "9"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = fmt.Println(netip.MustParseAddrPort(conn.LocalAddr().String()).Addr())
	return err
}

func lookup(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("lookup: a name is needed")
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", args[0])
	for _, a := range addresses {
		fmt.Println(a.Unmap())
	}
	return err
}
