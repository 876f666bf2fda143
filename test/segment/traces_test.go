package segment_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/pkg/ipam"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/netconf"
	"github.com/weft-cni/weft/pkg/record"
	"github.com/weft-cni/weft/test/cluster"
)

// held is what there is of attachments: pods' links, what these may send from,
// records, claims on addresses, and the stations that the API tells of.
func (l *lab) held() string {
	l.t.Helper()
	var lines []string
	for _, n := range l.Nodes() {
		for _, line := range l.read(n, pods, attachments) {
			lines = append(lines, n.Name+" "+line)
		}
		for k := range l.state(n) {
			if _, link, of := strings.Cut(k.Name, "@"); of && k.Kind == kernel.KindElement && strings.HasPrefix(link, netconf.LinkStart) {
				lines = append(lines, fmt.Sprintf("%s grants of %s", n.Name, link))
			}
		}
	}
	members, err := l.api.SegmentMembers().List(l.t.Context(), metav1.ListOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range members.Items {
		m := &members.Items[i].Spec
		for _, e := range m.Endpoints {
			lines = append(lines, fmt.Sprintf("%s station %d %s %s", m.Node, m.VNI, e.MAC, e.IPs))
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}

// read reads what a node has. A dump of the kernel that something interrupted is
// no good.
func (l *lab) read(n *cluster.Node, readers ...func() ([]string, error)) (lines []string) {
	l.t.Helper()
	eventually(l.t, 5*time.Second, func() error {
		lines = nil
		return n.Do(func() (err error) {
			for _, read := range readers {
				more, readErr := read()
				lines, err = append(lines, more...), errors.Join(err, readErr)
			}
			return err
		})
	})
	return lines
}

// pods are the host ends of pods' veths.
func pods() (lines []string, err error) {
	all, err := netlink.LinkList()
	for _, link := range all {
		if name := link.Attrs().Name; strings.HasPrefix(name, netconf.LinkStart) {
			lines = append(lines, "link "+name)
		}
	}
	return lines, err
}

// attachments are records and claims.
func attachments() (lines []string, err error) {
	records, err := names(filepath.Join(netconf.DataDir, record.Dir))
	for _, name := range records {
		lines = append(lines, "record "+name)
	}
	dir := ipam.SegmentClaims(netconf.RunDir).Dir
	claims, claimsErr := names(dir)
	for _, name := range claims {
		owner, _ := os.Readlink(filepath.Join(dir, name)) // one that has gone meanwhile is missed the next time
		lines = append(lines, fmt.Sprintf("claim %s of %s", name, owner))
	}
	return lines, errors.Join(err, claimsErr)
}

// names lists a directory; one that isn't there has nothing.
func names(dir string) (all []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return all, err
}

// forgetTime is how long a segment may stay that an ADD has asked for and then
// made no use of.
const forgetTime = time.Minute

// vanished waits until nodes have no more than they had, and the API nothing.
func (l *lab) vanished(before string) {
	l.t.Helper()
	eventually(l.t, forgetTime+20*time.Second, func() error { return errors.Join(same(before, l.traces()), l.noObjects()) })
}

// pristine is traces before anything happens, once all nodes know one another.
func (l *lab) pristine() string {
	l.t.Helper()
	eventually(l.t, reachTime, func() error {
		before := l.traces()
		for _, n := range l.Nodes() {
			for _, cidr := range n.PodCIDRs {
				if ways := strings.Count(before, fmt.Sprintf("route %s via", cidr)); ways != len(l.Nodes())-1 {
					return fmt.Errorf("%d nodes have a route to the pods of %s", ways, n.Name)
				}
			}
		}
		return nil
	})
	return l.traces() // one after another was read, and routes are made last
}

// lasting are files that stay: others may wait for a lock, and a node's key
// outlives what it was made for.
var lasting = regexp.MustCompile(`/((attach|segments/\d+)\.lock|wireguard/key\d\.json)$`)

// traces is all that is on nodes but their NICs: what is in the kernel, not as
// the product reads it, and files.
func (l *lab) traces() string {
	l.t.Helper()
	var all []string
	for _, n := range l.Nodes() {
		lines := l.read(n, links, entries, routes, rules, tables, files)
		slices.Sort(lines)
		all = append(all, n.Name+":\n"+strings.Join(lines, "\n"))
	}
	return strings.Join(all, "\n")
}

func links() (lines []string, err error) {
	all, err := netlink.LinkList()
	for _, link := range all {
		lines = append(lines, fmt.Sprintf("link %s type %s", link.Attrs().Name, link.Type()))
	}
	return lines, err
}

// entries are those of FDBs and neighbour tables, but those that NICs learn.
func entries() (lines []string, err error) {
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		all, listErr := netlink.NeighList(0, family)
		err = errors.Join(err, listErr)
		for _, e := range all {
			link, linkErr := netlink.LinkByIndex(e.LinkIndex)
			if linkErr != nil || link.Attrs().Name == cluster.NICName || e.State&unix.NUD_PERMANENT == 0 {
				continue
			}
			lines = append(lines, fmt.Sprintf("neigh %d %s %s dev %s", family, e.IP, e.HardwareAddr, link.Attrs().Name))
		}
	}
	return lines, err
}

func routes() (lines []string, err error) {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	for _, r := range all {
		if r.Table == unix.RT_TABLE_LOCAL {
			continue // follows from addresses
		}
		lines = append(lines, fmt.Sprintf("route %s via %s table %d", r.Dst, r.Gw, r.Table))
	}
	return lines, err
}

func rules() (lines []string, err error) {
	all, err := netlink.RuleList(netlink.FAMILY_ALL)
	for _, r := range all {
		lines = append(lines, "rule "+r.String())
	}
	return lines, err
}

func tables() (lines []string, err error) {
	c := &nftables.Conn{}
	all, err := c.ListTables()
	for _, table := range all {
		lines = append(lines, fmt.Sprintf("table %d %s", table.Family, table.Name))
		sets, setsErr := c.GetSets(table)
		err = errors.Join(err, setsErr)
		for _, set := range sets {
			elements, elementsErr := c.GetSetElements(set)
			err = errors.Join(err, elementsErr)
			lines = append(lines, fmt.Sprintf("set %d %s %s: %d elements", table.Family, table.Name, set.Name, len(elements)))
		}
	}
	return lines, err
}

// files are those below Weft's directories, and what the runtime remembers.
func files() (lines []string, err error) {
	for _, dir := range []string{netconf.RunDir, netconf.DataDir, "/var/lib/cni", "/run/netns"} {
		walkErr := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && !d.IsDir() && !lasting.MatchString(path) {
				lines = append(lines, "file "+path)
			}
			return err
		})
		err = errors.Join(err, walkErr)
	}
	return lines, err
}
