package netconf

import (
	"fmt"
	"net/netip"
)

// readRoutes reads the pod's further routes, those of ipam.routes among them
// where Weft allocates. A delegate gets its own by itself.
func (n *Network) readRoutes(f fields) error {
	all, err := f.objects("routes", "a list of objects with dst")
	if err != nil {
		return err
	}
	if n.IPAM.Own() {
		ipam, err := f.object("ipam", "an object with type and routes")
		if err != nil {
			return err
		}
		more, err := ipam.objects("routes", "a list of objects with dst")
		if err != nil {
			return err
		}
		all = append(all, more...)
	}
	type place struct {
		dst             netip.Prefix
		table, priority int
	}
	first := map[place]string{}
	for _, f := range all {
		r, err := n.readRoute(f)
		if err != nil {
			return err
		}
		p := place{r.Dst, r.Table, r.Priority}
		if other := first[p]; other != "" {
			return f.bad("dst", fmt.Sprintf("a destination that %sdst doesn't have, or another priority or table", other))
		}
		first[p] = f.path
		n.Routes = append(n.Routes, r)
	}
	return nil
}

// readRoute reads one route with the keys of a CNI result (CNI specification,
// section 5, "ADD Success").
func (n *Network) readRoute(f fields) (r Route, err error) {
	known := []string{"dst", "gw", "mtu", "advmss", "priority", "table"}
	if err = f.only(known, nil); err != nil {
		return r, err
	}
	var dst, gw string
	want := "a network such as 10.0.0.0/8 or fd00::/8, with no bits set behind its length"
	if err = f.decode("dst", &dst, want); err != nil {
		return r, err
	}
	if r.Dst, err = netip.ParsePrefix(dst); err != nil || r.Dst != r.Dst.Masked() || r.Dst.Addr().Is4In6() {
		return r, f.bad("dst", want)
	}
	want, isHop := n.hop(r.Dst)
	if err = f.decode("gw", &gw, want); err != nil {
		return r, err
	}
	if gw != "" {
		if r.GW, err = netip.ParseAddr(gw); err != nil || !isHop(r.GW) {
			return r, f.bad("gw", want)
		}
	}
	for _, key := range []struct {
		name string
		to   *int
		most int
	}{
		{"mtu", &r.MTU, maxMTU},
		{"advmss", &r.AdvMSS, maxMTU},
		{"priority", &r.Priority, 1<<31 - 1},
		{"table", &r.Table, 1<<31 - 1},
	} {
		want := fmt.Sprintf("a number from 0 to %d", key.most)
		if err := f.decode(key.name, key.to, want); err != nil {
			return r, err
		}
		if *key.to < 0 || *key.to > key.most {
			return r, f.bad(key.name, want)
		}
	}
	return r, nil
}

// hop says which next hops a route to dst may have.
func (n *Network) hop(dst netip.Prefix) (want string, is func(netip.Addr) bool) {
	if n.Segment != nil {
		return "an address of the destination's family on the segment, or none: the range's gateway", func(gw netip.Addr) bool {
			return gw.Is4() == dst.Addr().Is4() && gw.Zone() == "" && !gw.IsUnspecified() && !gw.IsMulticast()
		}
	}
	hop := Gateway6
	if dst.Addr().Is4() {
		hop = Gateway4
	}
	return fmt.Sprintf("%s or none: the node is a pod's only neighbour", hop), func(gw netip.Addr) bool { return gw == hop }
}
