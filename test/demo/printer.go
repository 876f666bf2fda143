package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// printer writes what a reader sees: steps with the time they came at, and
// tables.
type printer struct {
	mu      sync.Mutex
	w       io.Writer
	colour  bool
	started time.Time
	partial []byte // of a line written to it
}

func newPrinter(f *os.File) *printer {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &printer{w: f, colour: err == nil, started: time.Now()}
}

// line writes a line as it is.
func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// step writes a line after the time since the start.
func (p *printer) step(format string, args ...any) {
	p.line("%6.1f s  %s", time.Since(p.started).Seconds(), fmt.Sprintf(format, args...))
}

// Write makes a step of each line that others write.
func (p *printer) Write(data []byte) (int, error) {
	p.partial = append(p.partial, data...)
	for {
		line, rest, ok := bytes.Cut(p.partial, []byte("\n"))
		if !ok {
			return len(data), nil
		}
		p.step("%s", line)
		p.partial = rest
	}
}

func (p *printer) title(format string, args ...any) {
	p.line("\n%s", p.bold(fmt.Sprintf(format, args...)))
}

func (p *printer) bold(s string) string {
	if !p.colour {
		return s
	}
	return "\033[1m" + s + "\033[0m"
}

// row writes cells in columns of the given widths, indented; the last cell is
// as long as it is.
func (p *printer) row(widths []int, cells ...string) {
	var b strings.Builder
	for i, cell := range cells {
		width := 0
		if i < len(cells)-1 {
			width = widths[min(i, len(widths)-1)]
		}
		fmt.Fprintf(&b, "%-*s", width, cell)
	}
	p.line("  %s", strings.TrimRight(b.String(), " "))
}
