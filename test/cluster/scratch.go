package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const scratchPrefix = "weft-cluster-"

// scratch is this process's directory for files of all its clusters. Its lock
// tells later processes that it is in use; one whose owner was killed can be
// locked, and is removed by the next that starts.
type scratch struct {
	mu   sync.Mutex
	dir  string
	lock *os.File
}

// A process has one: what is killed with it is cleared as one.
var processScratch scratch

// scratchBase is where scratch directories are: on a disk, so that the nodes'
// fsync is one. /tmp is memory on many machines.
func scratchBase() string { return cmp.Or(os.Getenv("TMPDIR"), "/var/tmp") }

// mkdir makes a new directory below the scratch directory.
func (s *scratch) mkdir(pattern string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		sweep(scratchBase())
		dir, lock, err := newScratch(scratchBase())
		if err != nil {
			return "", err
		}
		s.dir, s.lock = dir, lock
	}
	return os.MkdirTemp(s.dir, pattern)
}

// remove removes the scratch directory.
func (s *scratch) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == "" {
		return nil
	}
	err := errors.Join(os.RemoveAll(s.dir), s.lock.Close())
	s.dir, s.lock = "", nil
	return err
}

func newScratch(base string) (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp(base, scratchPrefix)
		if err != nil {
			return "", nil, err
		}
		lock, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // another process swept it before it was locked
		}
		if err != nil {
			return "", nil, err
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if _, gone := os.Stat(dir); err == nil && gone == nil {
			return dir, lock, nil
		}
		_ = lock.Close()
	}
}

// sweep removes the scratch directories below base that no process holds.
// It is best effort: another user's can't be removed.
func sweep(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, scratchPrefix+"*"))
	if err != nil {
		panic(fmt.Sprintf("sweep %s: %v", base, err)) // the pattern is bad
	}
	for _, dir := range dirs {
		lock, err := os.Open(dir)
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}
