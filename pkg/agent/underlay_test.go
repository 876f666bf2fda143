package agent

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/pkg/kernel/rtnl"
	"github.com/weft-cni/weft/pkg/overlay"
	"github.com/weft-cni/weft/pkg/settings"
)

func TestChooseUnderlay(t *testing.T) {
	host := []rtnl.HostAddr{
		hostAddr("10.0.2.15/24", "eth0"),
		hostAddr("192.0.2.1/24", "bond0"),
		hostAddr("192.0.2.2/24", "bond0"),
		hostAddr("198.51.100.1/24", "down0"),
		hostAddr("2001:db8::1/64", "bond0"),
		hostAddr("fd00::5/64", "eth0"),
	}
	host[3].Up = false
	internal := func(addrs ...string) (list []netip.Addr) {
		for _, a := range addrs {
			list = append(list, netip.MustParseAddr(a))
		}
		return list
	}
	within := func(cidrs ...string) (list []netip.Prefix) {
		for _, c := range cidrs {
			list = append(list, netip.MustParsePrefix(c))
		}
		return list
	}
	for name, test := range map[string]struct {
		family   settings.Family
		link     string
		cidrs    []netip.Prefix
		internal []netip.Addr
		want     []string
		fails    string
	}{
		"the Node's address":                 {internal: internal("192.0.2.2"), want: []string{"192.0.2.2 bond0"}},
		"the Node's addresses, IPv4 first":   {internal: internal("192.0.2.1", "2001:db8::1"), want: []string{"192.0.2.1 bond0", "2001:db8::1 bond0"}},
		"the Node's addresses, IPv6 first":   {internal: internal("2001:db8::1", "192.0.2.1"), want: []string{"2001:db8::1 bond0", "192.0.2.1 bond0"}},
		"IPv6, though IPv4 is first":         {family: settings.IPv6, internal: internal("192.0.2.1", "2001:db8::1"), want: []string{"2001:db8::1 bond0", "192.0.2.1 bond0"}},
		"addresses of two interfaces":        {internal: internal("192.0.2.1", "fd00::5"), want: []string{"192.0.2.1 bond0", "fd00::5 eth0"}},
		"the first of the Node's is away":    {internal: internal("203.0.113.1", "192.0.2.1"), want: []string{"192.0.2.1 bond0"}},
		"an interface":                       {link: "eth0", internal: internal("192.0.2.1"), want: []string{"10.0.2.15 eth0", "fd00::5 eth0"}},
		"an interface, the Node's preferred": {link: "bond0", internal: internal("192.0.2.2"), want: []string{"192.0.2.2 bond0", "2001:db8::1 bond0"}},
		"a range":                            {cidrs: within("fd00::/8"), want: []string{"fd00::5 eth0"}},
		"ranges of both families":            {cidrs: within("2001:db8::/32", "10.0.0.0/8"), want: []string{"10.0.2.15 eth0", "2001:db8::1 bond0"}},
		"an interface and a range":           {link: "bond0|eth0", cidrs: within("192.0.2.0/24"), internal: internal("192.0.2.2"), want: []string{"192.0.2.2 bond0"}},
		"none is there": {
			internal: internal("203.0.113.1"), fails: "wanted one of the Node's InternalIPs [203.0.113.1], the interfaces have 10.0.2.15 on eth0, 192.0.2.1 on bond0",
		},
		"it is down":              {internal: internal("198.51.100.1"), fails: "198.51.100.1 on down0 (down)"},
		"not of the family":       {family: settings.IPv4, internal: internal("2001:db8::1"), fails: "wanted ipv4, one of the Node's InternalIPs"},
		"no such interface":       {link: "ib0", fails: "on an interface like ^(?:ib0)$"},
		"nothing in the range":    {cidrs: within("203.0.113.0/24"), fails: "within [203.0.113.0/24]"},
		"the Node has no address": {fails: "InternalIPs []"},
	} {
		t.Run(name, func(t *testing.T) {
			want := settings.Underlay{Family: settings.Auto, CIDRs: test.cidrs}
			if test.family != "" {
				want.Family = test.family
			}
			if test.link != "" {
				want.Interface = regexp.MustCompile("^(?:" + test.link + ")$")
			}
			chosen, err := chooseUnderlay(want, test.internal, host)
			if test.fails != "" {
				if !errors.Is(err, errUnderlayLost) || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("chose %v, %v; want an error with %q", chosen, err, test.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range chosen {
				got = append(got, u.Addr.String()+" "+u.Link)
				if !u.Subnet.Contains(u.Addr) || u.Subnet != u.Subnet.Masked() || u.MTU != 1500 {
					t.Errorf("chose %+v", u)
				}
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestNothingOnTheHost(t *testing.T) {
	_, err := chooseUnderlay(settings.Underlay{Family: settings.Auto}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "the interfaces have none") {
		t.Errorf("error is %v", err)
	}
}

// Somebody who sets accept_ra back from 2 to 1 takes the node's default route
// from it: the plan must not follow.
func TestRouterAdvertisementsAreKept(t *testing.T) {
	before := []overlay.Underlay{{Addr: netip.MustParseAddr("2001:db8::1"), Link: "eth0", AcceptRA: true}}
	now := []overlay.Underlay{{Addr: netip.MustParseAddr("2001:db8::1"), Link: "eth0"}}
	keepRouterAdvertisements(before, now)
	if !now[0].AcceptRA {
		t.Error("forgotten")
	}
	elsewhere := []overlay.Underlay{{Addr: netip.MustParseAddr("2001:db8::1"), Link: "eth1"}}
	keepRouterAdvertisements(before, elsewhere)
	if elsewhere[0].AcceptRA {
		t.Error("taken over to another interface")
	}
}
