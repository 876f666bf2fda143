package flock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/flock"
)

// holdFile makes the test binary a process that holds a lock until it dies.
const holdFile = "FLOCK_TEST_HOLD"

func TestMain(m *testing.M) {
	if file := os.Getenv(holdFile); file != "" {
		if _, err := flock.Exclusive(context.Background(), file, time.Minute); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("held")
		_ = unix.Pause()
	}
	os.Exit(m.Run())
}

const (
	soon = 20 * time.Millisecond
	late = time.Minute
)

func TestSharedAndExclusive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	ctx := t.Context()
	releaseA, err := flock.Shared(ctx, file, soon)
	if err != nil {
		t.Fatal(err)
	}
	releaseB, err := flock.Shared(ctx, file, soon)
	if err != nil {
		t.Fatalf("a second shared lock: %v", err)
	}
	releaseA()
	if _, err = flock.Exclusive(ctx, file, soon); !errors.Is(err, flock.ErrTimeout) {
		t.Fatalf("an exclusive lock beside a shared one: %v", err)
	}
	want := "lock " + file + ": lock is held by another process"
	if err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	releaseB()
	release, err := flock.Exclusive(ctx, file, late)
	if err != nil {
		t.Fatalf("after all are released: %v", err)
	}
	if _, err = flock.Shared(ctx, file, soon); !errors.Is(err, flock.ErrTimeout) {
		t.Fatalf("a shared lock beside an exclusive one: %v", err)
	}
	release()
}

// A lock that was given up waiting for is not kept when it arrives later.
func TestTimeoutGivesUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	release, err := flock.Exclusive(t.Context(), file, soon)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err = flock.Exclusive(t.Context(), file, time.Millisecond); !errors.Is(err, flock.ErrTimeout) {
			t.Fatal(err)
		}
	}
	release()
	release, err = flock.Exclusive(t.Context(), file, late)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestContext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	release, err := flock.Exclusive(t.Context(), file, soon)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = flock.Shared(ctx, file, late); !errors.Is(err, context.Canceled) || errors.Is(err, flock.ErrTimeout) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err = flock.Shared(ctx, file, late); !errors.Is(err, flock.ErrTimeout) {
		t.Errorf("the context's deadline: %v", err)
	}
}

func TestNoDirectory(t *testing.T) {
	if _, err := flock.Shared(t.Context(), filepath.Join(t.TempDir(), "no", "lock"), soon); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestExcludes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	// Atomic for the race detector, which doesn't know of flock; but reading
	// and writing are two steps, so without a lock some would be lost.
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				release, err := flock.Exclusive(context.Background(), file, late)
				if err != nil {
					t.Error(err)
					return
				}
				n.Store(n.Load() + 1)
				release()
			}
		})
	}
	wg.Wait()
	if n.Load() != 1000 {
		t.Errorf("counted to %d of 1000", n.Load())
	}
}

func TestKilledHolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holdFile+"="+file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err = flock.Shared(t.Context(), file, soon); !errors.Is(err, flock.ErrTimeout) {
		t.Fatalf("while it lives: %v", err)
	}
	if err = cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	release, err := flock.Shared(t.Context(), file, late)
	if err != nil {
		t.Fatalf("after it was killed: %v", err)
	}
	release()
	if err = cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
}
