package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tailBytes is how much of each log is shown.
const tailBytes = 8 << 10

// logTail gives the ends of logs.
func (c *Cluster) logTail(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		tail, err := tailOf(filepath.Join(c.dir, "log", name+".log"))
		if err != nil {
			tail = []byte(err.Error())
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", name, bytes.TrimSpace(tail))
	}
	return b.String()
}

func tailOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(f)
}

// showLogs shows the ends of the cluster's logs, weftd's last.
func (c *Cluster) showLogs(t testing.TB) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(c.dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Log(err)
	}
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".log"))
	}
	slices.SortStableFunc(names, func(a, b string) int { return logOrder(a) - logOrder(b) })
	t.Logf("logs:\n%s", c.logTail(names...))
}

func logOrder(name string) int {
	if strings.HasPrefix(name, "weftd-") {
		return 1
	}
	return 0
}
