package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names within netconf's DataDir and RunDir.
const (
	Dir      = "attachments" // in DataDir: a Store's directory
	LockFile = "attach.lock" // in RunDir: ADD and DEL hold it shared, GC exclusively
)

// Store keeps the records of one node, a file each. Processes may use one
// directory at once as long as no two work on the same attachment, which the
// CNI specification forbids the runtime to ask for.
type Store struct {
	Dir string
}

// CorruptError is a record that can't be read. The others can.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string { return fmt.Sprintf("record %s: %v", e.Path, e.Err) }

func (e *CorruptError) Unwrap() error { return e.Err }

// Corrupt gives the unreadable records that an error of List is about.
func Corrupt(err error) []*CorruptError {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var all []*CorruptError
	for _, err := range joined.Unwrap() {
		if c := (*CorruptError)(nil); errors.As(err, &c) {
			all = append(all, c)
		}
	}
	return all
}

// Attachment is what the file's name says that the record is of; ok is false
// where it is not the name of a record.
func (e *CorruptError) Attachment() (containerID, ifName string, ok bool) {
	containerID, ifName, _ = strings.Cut(filepath.Base(e.Path), ":")
	return containerID, ifName, validNames(containerID, ifName) == nil
}

// Put writes a, replacing what the store had of the same attachment. When it
// returns, the record survives a power failure; a crash before that leaves
// the old record or none, never half of one.
func (s Store) Put(a Attachment) error {
	f, err := s.create(a)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("record: %w", errors.Join(err, os.Remove(f.Name())))
	}
	if err := s.publish(f); err != nil {
		return err
	}
	return s.sync()
}

// Write does what Put does, but doesn't wait for the disk: the caller has to
// call flush, and may do other work meanwhile. When Write returns, all
// processes see the record, and it stays if this one is killed. A power failure
// before flush returns may leave a record that can't be read.
func (s Store) Write(a Attachment) (flush func() error, err error) {
	f, err := s.create(a)
	if err != nil {
		return nil, err
	}
	if err := s.publish(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("record: %w", err)
		}
		return s.sync()
	}, nil
}

// create writes a under a name that isn't a record's.
func (s Store) create(a Attachment) (*os.File, error) {
	data, err := encode(a)
	if err != nil {
		return nil, fmt.Errorf("record %s/%s: %w", a.ContainerID, a.IfName, err)
	}
	if err = os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	temp := filepath.Join(s.Dir, tempPrefix+fileName(a.ContainerID, a.IfName))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if _, err := f.Write(data); err != nil {
		return nil, fmt.Errorf("record: %w", errors.Join(err, f.Close(), os.Remove(temp)))
	}
	return f, nil
}

// publish gives what create wrote its record's name.
func (s Store) publish(f *os.File) error {
	temp := f.Name()
	name := strings.TrimPrefix(filepath.Base(temp), tempPrefix)
	if err := os.Rename(temp, filepath.Join(s.Dir, name)); err != nil {
		return fmt.Errorf("record: %w", errors.Join(err, os.Remove(temp)))
	}
	return nil
}

// Get reads the record of an attachment. The error is fs.ErrNotExist where
// there is none and a *CorruptError where it can't be read.
func (s Store) Get(containerID, ifName string) (Attachment, error) {
	if err := validNames(containerID, ifName); err != nil {
		return Attachment{}, fmt.Errorf("record: %w", err)
	}
	return read(filepath.Join(s.Dir, fileName(containerID, ifName)))
}

// Delete removes the record of an attachment, also a corrupt one; it does
// nothing where there is none. It doesn't wait for the disk: a record that a
// power failure brings back is of an earlier boot, as its BootID tells.
func (s Store) Delete(containerID, ifName string) error {
	if err := validNames(containerID, ifName); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	name := fileName(containerID, ifName)
	for _, n := range []string{tempPrefix + name, name} {
		if err := os.Remove(filepath.Join(s.Dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("record: %w", err)
		}
	}
	return nil
}

// List reads all records, in the order of their files' names. It gives those
// that can be read also when err is not nil; err then joins a *CorruptError
// for each that can't (Corrupt takes them apart).
func (s Store) List() ([]Attachment, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	var list []Attachment
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		a, err := read(filepath.Join(s.Dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted since ReadDir
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, a)
		}
	}
	return list, errors.Join(errs...)
}

// Clean removes what Puts that were interrupted left behind. The caller has
// excluded concurrent Puts (LockFile, exclusively).
func (s Store) Clean() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(s.Dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("record: %w", err)
		}
	}
	return nil
}
