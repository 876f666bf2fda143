package kernel

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"unique"
)

// PublicKey is a Curve25519 public key (RFC 7748).
type PublicKey [32]byte

// ParsePublicKey reads base64 as `wg pubkey` prints it.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := parseKey(s)
	return PublicKey(b), err
}

// String is the key in base64.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Secret is a private or preshared key of WireGuard. Nothing that prints
// values prints it, by reflection neither: what it holds is a pointer, to a
// string since fmt follows a pointer to an array. Two of the same bytes are ==.
// The zero value is none.
type Secret struct{ bytes unique.Handle[string] }

// ParseSecret reads base64 as `wg genkey` and `wg genpsk` print it. The error
// doesn't quote it.
func ParseSecret(s string) (Secret, error) {
	b, err := parseKey(s)
	if err != nil {
		return Secret{}, err
	}
	return SecretOf(b), nil
}

// SecretOf is the secret of these bytes; all zero is none.
func SecretOf(b [32]byte) Secret {
	if b == [32]byte{} {
		return Secret{}
	}
	return Secret{unique.Make(string(b[:]))}
}

// NewPrivateKey makes a private key from the system's random source.
func NewPrivateKey() Secret {
	var b [32]byte
	rand.Read(b[:])
	// RFC 7748, section 5: what every implementation makes of it anyhow.
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return SecretOf(b)
}

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s == Secret{} }

// Reveal gives the bytes, for the kernel and the disk; all zero where there is
// none.
func (s Secret) Reveal() [32]byte {
	if s.IsZero() {
		return [32]byte{}
	}
	return [32]byte([]byte(s.bytes.Value()))
}

// Public is the public key of a private one, zero where there is none.
func (s Secret) Public() PublicKey {
	if s.IsZero() {
		return PublicKey{}
	}
	b := s.Reveal()
	key, err := ecdh.X25519().NewPrivateKey(b[:])
	if err != nil {
		return PublicKey{} // of 32 bytes, any is one
	}
	return PublicKey(key.PublicKey().Bytes())
}

// Hash tells one preshared key from another and nothing else of it: the first
// eight bytes of a salted SHA-256 in hexadecimal, empty where there is none.
// It may be published: a key has 256 random bits.
func (s Secret) Hash() string {
	if s.IsZero() {
		return ""
	}
	b := s.Reveal()
	sum := sha256.Sum256(append([]byte("weft preshared key "), b[:]...))
	return hex.EncodeToString(sum[:8])
}

const redacted = "(hidden)"

// String hides the key.
func (s Secret) String() string { return redacted }

// Format hides the key from every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides the key.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

func parseKey(s string) ([32]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != 32 {
		return [32]byte{}, errKey
	}
	return [32]byte(b), nil
}

var errKey = fmt.Errorf("not a key of WireGuard (44 characters of base64, as of wg genkey, wg pubkey or wg genpsk)")
