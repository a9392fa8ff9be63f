// Package impair plays bad lines: what a guest's frames suffer in each direction, said in words, and the engine that has
// them suffer it.
//
//	s, err := impair.ParseWay("rate=10mbit,latency=50ms,jitter=10ms,loss=1%", nil)
//	line := impair.NewLine(false)
//	line.Set(now, &impair.Settings{Down: s, Seed: 7})
//	line.Send(now, frame)
//	for at, ok := line.Next(); ok; at, ok = line.Next() {
//		now = at // or wait until then
//		for _, frame := range line.Take(now, nil, 64, 1<<20) {
//			…
//		}
//	}
//
// A [Way] is one direction: a line of some rate with a queue before it, or one that carries by a recorded [Trace]; loss,
// alone or in bursts; latency and jitter; frames that overtake, come twice or are damaged; and all of that changing as
// time goes by. [Settings] are both directions of one guest, with conversations of their own settings by [Match]. Presets
// have lines that people know, with where the figures are from.
//
// A [Tally] counts frames by conversation, for synthetic-network's programs.
//
// A [Line] is the engine: no clock, no goroutine, no lock, so that it is exact in any time, real or not. backend/link's
// Impair puts two of them around a wire. Frames are counted as tc(8) counts them, with their Ethernet header. All of a
// wire's frames are the line's: ARP and DHCP are lost as anything else is.
//
// What it does not do: it plays the line to the guest, not the path behind it, where a host's own network adds what it
// adds; and it does not shape other traffic of the host.
package impair
