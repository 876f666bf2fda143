// Package encrypt plans the encrypted cluster network: which kernel objects a
// node needs so that its pods reach those of its peers through WireGuard, and
// nothing of that leaves the node in clear. Like package overlay, on which it
// stands, it is pure: no netlink, no API client, no clock. The node's private
// keys are kept by its Store.
//
// # Devices
//
// A node has at most two keys, each in a slot, 0 or 1: one, and while it is
// rotated a second. A WireGuard device has one private key, and within it an
// address belongs to one peer. So there is a device for each pair of slots, the
// node's own and its peers':
//
//	device     own slot  peers' slot  UDP port
//	wg-weft0   0         0            port
//	wg-weft1   0         1            port + 1
//	wg-weft2   1         0            port + 2
//	wg-weft3   1         1            port + 3
//
// The device of (own, peer) on one node talks to that of (peer, own) on the
// other. Both ends of a tunnel can change their keys at any time, each without
// asking the other: a new key makes new tunnels beside those there are, and a
// peer's routes move to one when its handshake has succeeded, each direction by
// itself. Names start with "wg-weft": rules of nftables know the devices by it.
//
// # Who makes the devices
//
// With WireGuard in the kernel, package rtnl makes the devices that are needed:
// links of type wireguard. Otherwise a process of its own (weftd wireguard)
// makes all four, as TUN devices with the UAPI sockets
//
//	/var/run/wireguard/wg-weft0.sock ... wg-weft3.sock
//
// It makes them when it starts, without a key and down, and again when one is
// deleted. All else is done from outside, on either kind in the same way: MTU,
// addresses and routes by rtnetlink, private key, port and peers by wgctrl, and
// the link is set up last. A device that isn't needed has no private key and no
// peers, and is down. Whoever replaces the process hands over the TUN devices
// with what was set on them.
//
// Which of the two a node uses: setting wireguard.implementation. With auto it
// is the kernel where the kernel knows links of type wireguard (rtnl's
// HasWireGuard), and the process finds the same by the same call and makes
// nothing then.
//
// # Settings
//
//	encryption: none | permissive | wireguard    (none)
//	wireguard:
//	  port: first of four UDP ports              (51820)
//	  implementation: auto | kernel | userspace  (auto)
//	  rotateEvery: age of a key to be replaced   (168h)
//	  persistentKeepalive: between keepalives    (0s: none)
//	  presharedKeyFile: base64, as of wg genpsk  (none)
//	  clusterCIDRs: ranges that hold all pods    (none; wireguard needs them)
package encrypt
