package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/encrypt"
	"github.com/weft-cni/weft/pkg/kernel"
	"github.com/weft-cni/weft/pkg/overlay"
)

// Why the node can't encrypt as the settings say. The plan stays as it was
// then, and so does the kernel.
var (
	errNoWireGuard  = errors.New("the kernel has no WireGuard, and wireguard.implementation asks for that")
	errPresharedKey = errors.New("wireguard.presharedKeyFile")
	errKeys         = errors.New("no private key")
	errOutside      = errors.New("in none of wireguard.clusterCIDRs")
)

// encryption is what this node has for encryption: its keys, and where its
// WireGuard is. Only the runner uses it.
type encryption struct {
	config encrypt.Config
	store  encrypt.Store
	log    *slog.Logger
	// inKernel reports whether the kernel has WireGuard.
	inKernel func() (bool, error)
	// dry keeps new keys off the disk.
	dry bool

	keys      []encrypt.Key
	known     bool // where WireGuard is
	userspace bool
	// preshared are the preshared keys since the start, the newest first;
	// invalid says what is wrong with the file now.
	preshared []kernel.Secret
	invalid   error
	// asked is when an operator wanted all older keys replaced.
	asked time.Time
	// sealed says that the node has encrypted segments, and unsealed why it
	// can't have them now.
	sealed   bool
	unsealed error
}

// on reports whether there is to be WireGuard, for whatever packets.
func (e *encryption) on() bool { return e.config.Mode != encrypt.None || e.sealed }

// self adds to o what this node has. draining says that there are sessions
// with peers, so that their tunnels stay for a while where encryption is off.
func (e *encryption) self(o overlay.Self, draining bool, now time.Time) (encrypt.Self, error) {
	self := encrypt.Self{Self: o}
	if e.sealed {
		self.Inner, self.InnerPort = encrypt.InnerUnderlay(o), overlay.InnerPort(e.config.Port)
	}
	if !e.on() && !draining {
		return self, nil
	}
	err := errors.Join(e.outside(o.PodCIDRs), e.locate(), e.loadKeys(now), e.readPresharedKey())
	switch usable := e.known && len(e.keys) > 0 && !errors.Is(err, errPresharedKey); {
	case e.config.Mode == encrypt.None: // a tenant's trouble is not the cluster network's
		if e.unsealed = err; !usable {
			return self, nil
		}
	case err != nil:
		return self, err
	}
	self.Encrypted = e.config.Mode != encrypt.None
	self.Keys, self.PublicKeys = e.keys, encrypt.PublicKeys(e.keys)
	self.Userspace, self.Preshared = e.userspace, slices.Clone(e.preshared)
	return self, nil
}

// outside gives an error where this node's pods aren't among those that are
// never sent in clear: then other nodes' may not be either.
func (e *encryption) outside(own []netip.Prefix) error {
	if e.config.Mode != encrypt.WireGuard {
		return nil
	}
	for _, cidr := range own {
		if !slices.ContainsFunc(e.config.ClusterCIDRs, func(all netip.Prefix) bool {
			return all.Bits() <= cidr.Bits() && all.Contains(cidr.Addr())
		}) {
			return fmt.Errorf("this node's pod CIDR %s is %w, which are %s", cidr, errOutside, e.config.ClusterCIDRs)
		}
	}
	return nil
}

// locate finds out where WireGuard is, once.
func (e *encryption) locate() error {
	if e.known {
		return nil
	}
	e.userspace = e.config.Implementation == encrypt.Userspace
	if !e.userspace {
		has, err := e.inKernel()
		switch {
		case err != nil:
			return err
		case !has && e.config.Implementation == encrypt.Kernel:
			return errNoWireGuard
		}
		e.userspace = !has
	}
	e.known = true
	e.log.Info("WireGuard found", "implementation", e.implementation())
	return nil
}

// implementation names where WireGuard is.
func (e *encryption) implementation() string {
	if e.userspace {
		return string(encrypt.Userspace)
	}
	return string(encrypt.Kernel)
}

// loadKeys reads the keys, makes the first, and replaces one that is due, unless
// the one before is still there: some peer may be using it.
func (e *encryption) loadKeys(now time.Time) (err error) {
	if len(e.keys) == 0 {
		if e.keys, err = e.store.Load(); err != nil {
			return fmt.Errorf("%w: %w", errKeys, err)
		}
	}
	due := len(e.keys) == 0 || len(e.keys) == 1 && !now.Before(encrypt.Due(e.config, e.keys, e.asked))
	if !due || len(e.keys) > 0 && !e.on() {
		return nil
	}
	if e.dry {
		e.keys = []encrypt.Key{{Created: now, Private: kernel.NewPrivateKey()}}
		return nil
	}
	keys, err := e.store.Make(e.keys, now)
	if err != nil {
		return fmt.Errorf("%w: %w", errKeys, err)
	}
	e.keys = keys
	e.log.Info("new WireGuard key", "public", keys[0].Private.Public(), "slot", keys[0].Slot, "keys", len(keys))
	return nil
}

// retire removes all keys but the newest.
func (e *encryption) retire() error {
	keys, err := e.store.Retire(e.keys)
	if err != nil {
		return err
	}
	e.keys = keys
	e.log.Info("old WireGuard key retired", "public", keys[0].Private.Public())
	return nil
}

// readPresharedKey reads the file anew. What is wrong with it is an error only
// as long as there is no key from before.
func (e *encryption) readPresharedKey() error {
	if e.config.PresharedKeyFile == "" {
		return nil
	}
	key, err := readSecret(e.config.PresharedKeyFile)
	if err != nil {
		e.invalid = fmt.Errorf("%w %s: %w", errPresharedKey, e.config.PresharedKeyFile, err)
		if len(e.preshared) > 0 {
			return nil
		}
		return e.invalid
	}
	e.invalid = nil
	if len(e.preshared) > 0 && e.preshared[0] == key {
		return nil
	}
	e.preshared = append([]kernel.Secret{key}, slices.DeleteFunc(e.preshared, func(k kernel.Secret) bool { return k == key })...)
	e.preshared = e.preshared[:min(len(e.preshared), maxPreshared)]
	e.log.Info("preshared key read", "path", e.config.PresharedKeyFile, "hash", key.Hash())
	return nil
}

// maxPreshared is how many preshared keys are tried: that of the file, and those
// that peers may still have.
const maxPreshared = 3

func readSecret(path string) (kernel.Secret, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return kernel.Secret{}, err
	}
	key, err := kernel.ParseSecret(strings.TrimSpace(string(data)))
	if err == nil && key.IsZero() {
		err = errors.New("all zero: WireGuard takes that for none")
	}
	return key, err
}
