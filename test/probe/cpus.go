package probe

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// CPUs are what the two ends of a connection run on. Two nodes have CPUs of
// their own, so that every message wakes one; on one machine the scheduler puts
// both ends on one CPU at times, where a round trip takes a third as long.
type CPUs [2]int

// OneEach gives each end a CPU, of those that the process may use, and both
// the same one where there is no other.
func OneEach() (CPUs, error) {
	all, err := affinity()
	if err != nil {
		return CPUs{}, err
	}
	return CPUs{all[0], all[len(all)-1]}, nil
}

// Shared puts both ends on the first of c: what a round trip takes then is all
// work, and nothing is waiting.
func (c CPUs) Shared() CPUs { return CPUs{c[0], c[0]} }

func affinity() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cpus []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// pinned runs f with the calling thread, which the caller has locked, on cpu.
func pinned(cpu int, f func() error) error {
	var before, only unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	only.Set(cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return fmt.Errorf("sched_setaffinity to CPU %d: %w", cpu, err)
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}
