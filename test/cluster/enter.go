package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// EnterScript writes a shell script, Dir()/name, that runs its arguments, or a
// shell, in a place for as long as this process lives, and gives its path. It
// needs nsenter(1), and finds the namespaces among this process's open files.
func (c *Cluster) EnterScript(place Place, name string) (string, error) {
	s := place.namespaces()
	var b strings.Builder
	fmt.Fprintf(&b, "#!/bin/sh\nexec nsenter --net=/proc/%d/fd/%d", os.Getpid(), s.net.Fd())
	if s.mnt != nil {
		fmt.Fprintf(&b, " --mount=/proc/%d/fd/%d", os.Getpid(), s.mnt.Fd())
	}
	if Unprivileged() {
		fmt.Fprintf(&b, " --user=/proc/%d/ns/user --preserve-credentials", os.Getpid())
	}
	b.WriteString(" -- \"${@:-${SHELL:-/bin/sh}}\"\n")
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(b.String()), 0o700); err != nil {
		return "", err
	}
	return path, nil
}

func (s *space) namespaces() *space { return s }

func (n *Node) namespaces() *space { return n.space }

func (p *Pod) namespaces() *space { return p.space }
