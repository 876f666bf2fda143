package encrypt

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/weft-cni/weft/pkg/kernel"
)

// Store keeps the node's private keys, a file for each slot, that nobody but
// root can read. They outlive reboots, so peers' entries stay true. Not safe
// for concurrent use.
type Store struct {
	Dir string // made where it is missing
}

// KeyDir is the store's directory within the daemon's data directory.
const KeyDir = "wireguard"

// keyFile is the file of a key.
type keyFile struct {
	PrivateKey string    `json:"privateKey"` // base64, as of wg genkey
	Created    time.Time `json:"created"`
}

func (s Store) path(slot int) string { return filepath.Join(s.Dir, fmt.Sprintf("key%d.json", slot)) }

// Load gives the keys, the newest first. An error names the file that can't be
// used and nothing of what is in it; such a file is never overwritten.
func (s Store) Load() ([]Key, error) {
	var keys []Key
	for slot := range Slots {
		k, err := s.load(slot)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("WireGuard key %s: %w", s.path(slot), err)
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b Key) int { return b.Created.Compare(a.Created) })
	return keys, nil
}

func (s Store) load(slot int) (Key, error) {
	f, err := os.Open(s.path(slot))
	if err != nil {
		return Key{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Key{}, err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("its mode is %v: a file that others than its owner can read or write is no secret; remove it, and the node makes a new key", mode)
	}
	var file keyFile
	if json.NewDecoder(f).Decode(&file) != nil {
		return Key{}, errMalformed // of which the decoder may quote a part
	}
	private, err := kernel.ParseSecret(file.PrivateKey)
	if err != nil || private.IsZero() || file.Created.IsZero() {
		return Key{}, errMalformed
	}
	return Key{Slot: slot, Created: file.Created, Private: private}, nil
}

var errMalformed = errors.New("it doesn't hold a private key and its time; remove it, and the node makes a new one")

// Make adds a new key, the newest, to keys, which Load gave, in the slot that
// is free. It is on disk when Make returns: a new file, flushed, that appears
// whole under its name or not at all.
func (s Store) Make(keys []Key, now time.Time) ([]Key, error) {
	if len(keys) >= Slots {
		return nil, fmt.Errorf("WireGuard key: both slots of %s are taken", s.Dir)
	}
	k := Key{Created: now.UTC().Round(0), Private: kernel.NewPrivateKey()}
	if len(keys) > 0 {
		k.Slot = 1 - keys[0].Slot
		if !k.Created.After(keys[0].Created) { // the clock was set back
			k.Created = keys[0].Created.Add(time.Nanosecond)
		}
	}
	if err := s.write(k); err != nil {
		return nil, fmt.Errorf("WireGuard key %s: %w", s.path(k.Slot), err)
	}
	return append([]Key{k}, keys...), nil
}

func (s Store) write(k Key) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	raw := k.Private.Reveal()
	data, err := json.Marshal(keyFile{PrivateKey: base64.StdEncoding.EncodeToString(raw[:]), Created: k.Created})
	if err != nil {
		return err
	}
	temporary := s.path(k.Slot) + ".new"
	if err = os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one who was killed
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	// A link, unlike a rename, replaces no key that is there.
	err = os.Link(temporary, s.path(k.Slot))
	return errors.Join(err, os.Remove(temporary), flush(s.Dir), flush(filepath.Dir(s.Dir)))
}

// Retire removes all keys but the newest and gives that.
func (s Store) Retire(keys []Key) ([]Key, error) {
	if len(keys) < 2 {
		return keys, nil
	}
	for _, k := range keys[1:] {
		if err := os.Remove(s.path(k.Slot)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return keys, fmt.Errorf("WireGuard key: %w", err)
		}
	}
	return keys[:1], flush(s.Dir)
}

func flush(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Due is when the newest of keys is to be replaced: once it is as old as c says,
// a tenth less or more, which follows from the key, so that nodes that made
// theirs together don't rotate together; or at a time that was asked for, if
// the key is older than that.
func Due(c Config, keys []Key, asked time.Time) time.Time {
	newest := keys[0]
	public := newest.Private.Public()
	h := fnv.New32a()
	h.Write(public[:])
	spread := 0.9 + 0.2*float64(h.Sum32())/(1<<32)
	due := newest.Created.Add(time.Duration(float64(c.RotateEvery) * spread))
	if newest.Created.Before(asked) && asked.Before(due) {
		return asked
	}
	return due
}
