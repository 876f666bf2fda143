package leak

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Count is of packets of one kind.
type Count struct{ Packets, Bytes uint64 }

// Leak is an example of a packet that could be read.
type Leak struct {
	Interface string
	Packet
	Bytes int
}

func (l Leak) String() string {
	where := "in clear"
	if l.Kind == ClearTunnel {
		where = "in a tunnel"
	}
	return fmt.Sprintf("on %s, %s: %s to %s, protocol %d, %d bytes", l.Interface, where, l.Src, l.Dst, l.Protocol, l.Bytes)
}

// Report is what a capture has seen. The kernel counts a large packet that it
// cuts, or has put together, as one.
type Report struct {
	Counts [Kinds]Count // by Kind
	// Missed is how many packets came faster than they could be looked at.
	Missed uint64
	// Examples are the first leaks.
	Examples []Leak
}

// Leaks is how many packets could be read.
func (r Report) Leaks() uint64 { return r.Counts[Clear].Packets + r.Counts[ClearTunnel].Packets }

// Encrypted is how many packets were WireGuard's.
func (r Report) Encrypted() uint64 { return r.Counts[Encrypted].Packets }

// String is a table, with the examples below.
func (r Report) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\tpackets\tKiB\t\n")
	for _, k := range []Kind{Encrypted, Clear, ClearTunnel, Other} {
		fmt.Fprintf(w, "%s\t%d\t%d\t\n", k, r.Counts[k].Packets, r.Counts[k].Bytes>>10)
	}
	if r.Missed > 0 {
		fmt.Fprintf(w, "not looked at, too fast\t%d\t\t\n", r.Missed)
	}
	_ = w.Flush() // into memory
	for i, l := range r.Examples {
		if i == 0 {
			b.WriteString("\nThe first that could be read:\n")
		}
		fmt.Fprintf(&b, "  %s\n", l)
	}
	return b.String()
}
