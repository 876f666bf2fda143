package ipam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-cni/weft/pkg/netconf"
)

// undoTimeout is how long a delegate has for its DEL after a failed ADD.
const undoTimeout = 10 * time.Second

// Delegate gives an attachment addresses from another IPAM plugin (CNI
// specification, section 4): host-local, static, dhcp, whereabouts.
//
// An error that the plugin reported is a *types.Error in the chain, whose code
// is the plugin's.
type Delegate struct {
	Type    string // the plugin's name in CNI_PATH
	Version string // of CNI, of Config
	Config  []byte // the network configuration, which the plugin gets as it is
	Env     netconf.Env
	Log     io.Writer // what the plugin writes to its standard error
}

func newDelegate(n *netconf.Network) *Delegate {
	return &Delegate{Type: n.IPAM.Type, Version: n.CNIVersion, Config: n.Raw, Env: n.Env, Log: os.Stderr}
}

// Add implements Allocator. The plugin is asked to undo an ADD that failed,
// also one that was cut short by ctx.
func (d *Delegate) Add(ctx context.Context) (Result, error) {
	r, err := d.add(ctx)
	if err == nil || errors.Is(err, ErrNoPlugin) {
		return r, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undo := d.Del(ctx); undo != nil {
		err = fmt.Errorf("%w (and undoing it: %w)", err, undo)
	}
	return Result{}, err
}

func (d *Delegate) add(ctx context.Context) (Result, error) {
	out, err := d.run(ctx, netconf.Add)
	if err != nil {
		return Result{}, err
	}
	cni, err := netconf.ParseResult(out, d.Version)
	if err != nil {
		return Result{}, d.wrap(err)
	}
	r, err := resultFrom(cni)
	if err != nil {
		return Result{}, d.wrap(err)
	}
	return r, nil
}

// resultFrom takes what an attachment needs from a delegate's result.
func resultFrom(cni *types100.Result) (Result, error) {
	if len(cni.IPs) == 0 {
		return Result{}, errors.New("its result has no address")
	}
	r := Result{DNS: cni.DNS}
	for _, ip := range cni.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, size := ip.Address.Mask.Size()
		addr = addr.Unmap()
		if !ok || size == 0 || ones > addr.BitLen() {
			return Result{}, fmt.Errorf("its result has the address %s", ip.Address.String())
		}
		a := Addr{Prefix: netip.PrefixFrom(addr, ones)}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			a.Gateway = gw.Unmap()
		}
		r.Addrs = append(r.Addrs, a)
	}
	for _, c := range cni.Routes {
		route, err := netconf.RouteFrom(c)
		if err != nil {
			return Result{}, fmt.Errorf("its result has a %w", err)
		}
		r.Routes = append(r.Routes, route)
	}
	return r, nil
}

// Check implements Allocator: the plugin finds the addresses in the
// configuration's prevResult. CHECK exists since CNI 0.4.0.
func (d *Delegate) Check(ctx context.Context, _ []netip.Addr) error {
	if d.Version == "0.3.1" {
		return nil
	}
	_, err := d.run(ctx, netconf.Check)
	return err
}

// Del implements Allocator.
func (d *Delegate) Del(ctx context.Context) error {
	_, err := d.run(ctx, netconf.Del)
	return err
}

// GC implements Allocator: the plugin finds what to keep in the
// configuration's cni.dev/valid-attachments. GC exists since CNI 1.1.0, and
// not all plugins do anything on it: for those, run a DEL with the recorded
// configuration of each attachment that is no longer valid.
func (d *Delegate) GC(ctx context.Context, _ func(Owner) bool) error {
	return d.since110(ctx, netconf.GC)
}

// Status implements Allocator. STATUS exists since CNI 1.1.0.
func (d *Delegate) Status(ctx context.Context) error {
	if _, err := d.find(); err != nil {
		return err
	}
	return d.since110(ctx, netconf.Status)
}

func (d *Delegate) since110(ctx context.Context, command string) error {
	if d.Version != "1.1.0" {
		return nil
	}
	_, err := d.run(ctx, command)
	return err
}
