package netconf

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-cni/weft/pkg/kernel"
)

// readRequests reads what the runtime asks for this attachment. An address or
// MAC has several places; each that has one is checked, the first counts.
func (n *Network) readRequests(f fields) error {
	run, err := f.object("runtimeConfig", "an object with mac and ips")
	if err != nil {
		return err
	}
	// Runtimes put in only what the configuration's capabilities ask for, so a
	// port mapping here was meant for another plugin and would be lost.
	known := []string{"mac", "ips"}
	if n.Mode == ModeSRIOV {
		known = append(known, "deviceID", "CNIDeviceInfoFile")
	}
	if err = run.only(known, foreign); err != nil {
		return err
	}
	// args are hints, of which any may be ignored (CNI conventions).
	args, err := f.object("args", "an object")
	if err != nil {
		return err
	}
	cni, err := args.object("cni", "an object with mac and ips")
	if err != nil {
		return err
	}
	env, err := n.Env.args()
	if err != nil {
		return err
	}
	n.Pod = Pod{
		Namespace:        env["K8S_POD_NAMESPACE"],
		Name:             env["K8S_POD_NAME"],
		UID:              env["K8S_POD_UID"],
		InfraContainerID: env["K8S_POD_INFRA_CONTAINER_ID"],
	}
	if err := n.readMAC([]fields{f, cni, run}, env["MAC"]); err != nil {
		return err
	}
	if !n.IPAM.Own() {
		return nil
	}
	return n.readAddrs([]fields{cni, run}, env["IP"])
}

const wantMAC = "a unicast Ethernet address such as 02:00:5e:10:00:01"

// readMAC reads the MACs of objects, a later one before an earlier one, and
// that of CNI_ARGS between the first and the others.
func (n *Network) readMAC(objects []fields, env string) error {
	for i, f := range objects {
		var s string
		if err := f.decode("mac", &s, wantMAC); err != nil {
			return err
		}
		if s != "" {
			mac, ok := macFrom(s)
			if !ok {
				return f.bad("mac", wantMAC)
			}
			n.MAC = mac
		}
		if i == 0 && env != "" {
			mac, ok := macFrom(env)
			if !ok {
				return badEnv("CNI_ARGS MAC", env, wantMAC)
			}
			n.MAC = mac
		}
	}
	return nil
}

// macFrom reads a MAC that a station can have.
func macFrom(s string) (kernel.MAC, bool) {
	mac, err := kernel.ParseMAC(s)
	return mac, err == nil && mac.IsUnicast()
}

const wantAddrs = "unicast addresses, with or without a prefix length, at most one IPv4 and one IPv6"

// readAddrs reads the addresses of CNI_ARGS and of objects, a later one before
// an earlier one.
func (n *Network) readAddrs(objects []fields, env string) error {
	if env != "" {
		addrs, err := addrsFrom(strings.Split(env, ","))
		if err != nil {
			return badEnv("CNI_ARGS IP", env, wantAddrs)
		}
		n.Addrs = addrs
	}
	for _, f := range objects {
		var words []string
		if err := f.decode("ips", &words, "a list of "+wantAddrs); err != nil {
			return err
		}
		addrs, err := addrsFrom(words)
		if err != nil {
			return f.bad("ips", "a list of "+wantAddrs)
		}
		if len(addrs) > 0 {
			n.Addrs = addrs
		}
	}
	return nil
}

// addrsFrom reads addresses that pods can have. A prefix length is dropped:
// runtimes give one by habit, and a pod's address is a host's.
func addrsFrom(words []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	var have4, have6 bool
	for _, w := range words {
		w = strings.TrimSpace(w)
		addr, err := netip.ParseAddr(w)
		if err != nil {
			p, err := netip.ParsePrefix(w)
			if err != nil {
				return nil, err
			}
			addr = p.Addr()
		}
		addr = addr.Unmap()
		if addr.Zone() != "" || !addr.IsGlobalUnicast() {
			return nil, fmt.Errorf("%s can't be a pod's address", addr)
		}
		have := &have6
		if addr.Is4() {
			have = &have4
		}
		if *have {
			return nil, fmt.Errorf("%s is the second of its family", addr)
		}
		*have = true
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
