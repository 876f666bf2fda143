// Package wguser is userspace WireGuard for a node whose kernel has none, or
// whose settings ask for it: a process of its own, `weftd wireguard`, that
// outlives the daemon. It makes TUN devices with golang.zx2c4.com/wireguard
// behind them. Package encrypt says which devices, and how the daemon sets
// them up: keys, ports and peers by wgctrl, all else by rtnetlink.
//
// The process knows nothing but what it is told there, and keeps nothing on
// disk. As with the kernel's, a device's UDP port is bound while its link is
// up.
//
// # When the daemon ends
//
// Nothing changes. The next daemon finds the links, and wgctrl tells what is
// configured.
//
// # When this process ends
//
// The TUN devices are persistent (TUNSETPERSIST): the links stay with their
// addresses and routes, lose their carrier, and drop what is sent into them.
// Were they to go, their routes would go with them, and packets take the next
// best route, in clear. The next process takes the links again. They have no
// keys and no peers then; the carrier's return, which rtnetlink tells, is the
// daemon's sign to configure them anew.
//
// # When another process takes over
//
// A second process, such as that of a new version, takes over from the first
// while it runs, without loss:
//
//  1. The first stops to answer on its control sockets and sends the second
//     all there is, over a socket that only root can open: TUN devices, UDP
//     sockets, listening sockets, and each device's configuration with its
//     keys. The second makes devices of them.
//  2. The first stops to read from the UDP sockets, the second begins. It has
//     no sessions yet: what belongs to those of the first it passes on to it.
//     So the first goes on to decrypt, and it still reads from the TUN devices
//     and encrypts.
//  3. The second makes sessions with all peers that the first had some with.
//     Peers go over to a new session with its first packet, and still take
//     packets of the session before.
//  4. The first stops to read from the TUN devices, the second begins.
//  5. A moment later nothing is on its way any more in the old sessions, and
//     the first forgets its keys. It waits for its end, since whoever started
//     it would start it again.
//
// Where the second ends before that is done, the first goes on with new
// sessions. Byte counters and handshake times begin anew.
package wguser
