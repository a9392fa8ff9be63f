package hello

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmnetd/vmnetd/flows"
)

const v1, v2 = 1, 0x6b3343cf

// rfcHello is the CRYPTO frame of RFC 9001 §A.2, which RFC 9369 §A.2 has as well. It names example.com.
const rfcHello = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868" +
	"04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578" +
	"616d706c652e636f6dff01000100000a00080006001d00170018001000070005" +
	"04616c706e000500050100000000003300260024001d00209370b2c9caa47fba" +
	"baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400" +
	"0d0010000e0403050306030203080408050806002d00020101001c0002400100" +
	"3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000" +
	"75300901100f088394c8f03e51570806048000ffff"

// initial is a client's Initial packet, to be put in datagrams.
type initial struct {
	version uint32
	to      string // hex; "" is RFC 9001's
	token   []byte
	number  uint64
	length  int  // of the number in bytes; 0 is 4
	first   byte // bits set in the first byte beside the usual
	frames  []byte
	pad     int // the packet's length at the least
	spoil   bool
}

func (p initial) seal(t testing.TB) []byte {
	if p.to == "" {
		p.to = "8394c8f03e515708"
	}
	if p.length == 0 {
		p.length = 4
	}
	v := quicVersions[p.version]
	if v == nil {
		v = quicVersions[v1]
	}
	id := unhex(t, p.to)
	s := newInitialStream(v, id)
	b := []byte{0xc0 | v.initial<<4 | byte(p.length-1) | p.first}
	b = binary.BigEndian.AppendUint32(b, p.version)
	b = append(append(b, byte(len(id))), id...)
	b = append(b, 0) // no source ID
	b = append(appendVarint(b, uint64(len(p.token))), p.token...)
	at := len(b) + 2
	pad := max(p.pad-at-p.length-16, 4-p.length) // 4 bytes of number and payload at the least, to sample behind
	frames := p.frames
	if len(frames) < pad {
		frames = append(bytes.Clone(frames), make([]byte, pad-len(frames))...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(0x4000|p.length+len(frames)+16))
	for i := range p.length {
		b = append(b, byte(p.number>>(8*(p.length-1-i))))
	}
	nonce := bytes.Clone(s.iv)
	for i := range 8 {
		nonce[11-i] ^= byte(p.number >> (8 * i))
	}
	b = s.aead.Seal(b, nonce, frames, b)
	var mask [aes.BlockSize]byte
	s.hp.Encrypt(mask[:], b[at+4:at+20])
	b[0] ^= mask[0] & 0x0f
	for i := range p.length {
		b[at+i] ^= mask[1+i]
	}
	if p.spoil {
		b[len(b)-1] ^= 1
	}
	return b
}

func appendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(b, uint16(v)|0x4000)
	default:
		return binary.BigEndian.AppendUint32(b, uint32(v)|0x80000000)
	}
}

func crypto(at int, part []byte) []byte {
	b := appendVarint([]byte{frameCrypto}, uint64(at))
	return append(appendVarint(b, uint64(len(part))), part...)
}

// The RFCs' packets, made again: every byte is protected by the tag, so the beginnings and the tags are compared.
func TestQUICVectors(t *testing.T) {
	s := newInitialStream(quicVersions[v1], unhex(t, "8394c8f03e515708"))
	if got := hex.EncodeToString(s.iv); got != "fa044b2f42a3fd3b46fb255c" { // RFC 9001 §A.1
		t.Errorf("iv %s", got)
	}
	for _, tt := range []struct {
		version    uint32
		begin, end string
	}{
		{v1, "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11", "e221af44860018ab0856972e194cd934"},
		{v2, "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485", "a18b2faa745b6fe189cf772a9f84cbfc"},
	} {
		b := initial{version: tt.version, number: 2, frames: unhex(t, rfcHello), pad: 1200}.seal(t)
		if got := hex.EncodeToString(b); len(b) != 1200 || !strings.HasPrefix(got, tt.begin) || !strings.HasSuffix(got, tt.end) {
			t.Fatalf("version %#x: %d bytes, %.64s … %s", tt.version, len(b), got, got[len(got)-32:])
		}
		var d Datagrams
		if h, more := d.Look(b); h != named(flows.HelloQUIC, "example.com") || more {
			t.Errorf("version %#x: %v, %v", tt.version, h, more)
		}
	}
}

// testdata/clients holds what clients sent to a port where nobody answers, a datagram a line.
func clients(t testing.TB) map[string][][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/clients/*.hex")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %v", files, err)
	}
	all := map[string][][]byte{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "#") {
				name := strings.TrimSuffix(filepath.Base(f), ".hex")
				all[name] = append(all[name], unhex(t, line))
			}
		}
	}
	return all
}

func TestQUICClients(t *testing.T) {
	for name, datagrams := range clients(t) {
		t.Run(name, func(t *testing.T) {
			want := named(flows.HelloQUIC, "www.example.com")
			if strings.Contains(name, "unnamed") {
				want.Name = ""
			}
			orders := [][]int{{0, 1, 2}, {1, 0, 2}, {2, 1, 0}}
			for _, order := range orders {
				var d Datagrams
				var h flows.Hello
				more, took := true, 0
				for _, i := range order {
					if h, more = d.Look(datagrams[i]); !more {
						break
					}
					took++
				}
				if h != want || more {
					t.Errorf("order %v: %v, %v; want %v", order, h, more, want)
				}
				t.Logf("order %v: known at the datagram after %d", order, took)
			}
		})
	}
}

func TestQUICByHand(t *testing.T) {
	hello := message(sni("A.Example."), ext(57, make([]byte, 100)))
	frames := crypto(0, hello)
	a := named(flows.HelloQUIC, "a.example")
	plain := initial{version: v1, frames: frames, pad: 1200}
	with := func(edit func(*initial)) []byte { p := plain; edit(&p); return p.seal(t) }
	whole := plain.seal(t)
	part := func(number uint64, from, to int) []byte {
		return with(func(p *initial) { p.number, p.frames = number, crypto(from, hello[from:to]) })
	}
	n := len(hello)
	forged := bytes.Replace(hello, []byte("A.Example."), []byte("B.Example."), 1)
	byteEach := func(b []byte, step int) (out []byte) {
		for i := 0; i < len(b); i += step {
			out = append(out, crypto(i, b[i:min(i+step, len(b))])...)
		}
		return out
	}
	big := message(sni("a.example"), ext(21, make([]byte, mostHello-100)))
	var ofBig [][]byte
	for at := 0; at < len(big); at += 1250 {
		ofBig = append(ofBig, initial{version: v1, number: uint64(len(ofBig)), frames: crypto(at, big[at:min(at+1250, len(big))]), pad: 1300}.seal(t))
	}
	var pings [][]byte
	for i := range MostDatagrams + 2 {
		pings = append(pings, initial{version: v1, number: uint64(i), frames: []byte{framePing}, pad: 1200}.seal(t))
	}
	small := initial{version: v1, number: 1, frames: frames, pad: 300}.seal(t)
	zeroRTT := append([]byte{0xd0, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08, 0, 0x41, 0}, make([]byte, 256)...)

	for _, tt := range []struct {
		name string
		in   [][]byte
		want flows.Hello
		more bool
		took int // datagrams until it is known
	}{
		{"one datagram", [][]byte{whole}, a, false, 1},
		{"version 2", [][]byte{with(func(p *initial) { p.version = v2 })}, a, false, 1},
		{"longest ID and a token", [][]byte{with(func(p *initial) { p.to, p.token = strings.Repeat("ab", 20), make([]byte, 100) })}, a, false, 1},
		{"short number", [][]byte{with(func(p *initial) { p.length = 1 })}, a, false, 1},
		{"two datagrams", [][]byte{part(0, 0, 40), part(1, 40, n)}, a, false, 2},
		{"the second first", [][]byte{part(1, 40, n), part(0, 0, 40)}, a, false, 2},
		{"a hole", [][]byte{part(0, 0, 40), part(1, 50, n), part(2, 40, 50)}, a, false, 3},
		{"parts that overlap", [][]byte{part(0, 0, 80), part(1, 20, 90), part(2, 60, n)}, a, false, 3},
		{"the same part twice", [][]byte{part(0, 0, 40), part(1, 0, 40), part(2, 40, n)}, a, false, 3},
		{"long numbers", [][]byte{with(func(p *initial) { p.number, p.frames = 0x3fe, crypto(0, hello[:9]) }),
			with(func(p *initial) { p.number, p.length, p.frames = 0x401, 1, crypto(9, hello[9:]) })}, a, false, 2},
		{"frames of three bytes, backwards", [][]byte{with(func(p *initial) {
			p.frames = nil
			for i := n - 1; i >= 0; i -= 3 {
				from := max(i-2, 0)
				p.frames = append(append(p.frames, crypto(from, hello[from:i+1])...), framePing, 0, 0, 0)
			}
		})}, a, false, 1},
		{"acknowledgements between", [][]byte{with(func(p *initial) {
			p.frames = append([]byte{frameACK, 5, 0, 1, 0, 1, 1, frameACKECN, 0, 0, 0, 0, 1, 1, 1}, frames...)
		})}, a, false, 1},
		{"two packets in one", [][]byte{append(initial{version: v1, frames: crypto(0, hello[:50])}.seal(t),
			initial{version: v1, number: 1, frames: crypto(50, hello[50:]), pad: 1150}.seal(t)...)}, a, false, 1},
		{"0-RTT before", [][]byte{append(bytes.Clone(small), append(zeroRTT, make([]byte, 700)...)...)}, a, false, 1},
		{"0-RTT alone after", [][]byte{part(0, 0, 40), zeroRTT, part(1, 40, n)}, a, false, 3},
		{"0-RTT alone at first", [][]byte{zeroRTT}, unclear, false, 1},
		{"zeros after", [][]byte{append(bytes.Clone(small), make([]byte, 900)...)}, a, false, 1},
		{"longest hello", ofBig, a, false, 14},

		{"too short a datagram", [][]byte{small}, unclear, false, 1},
		{"another connection meanwhile", [][]byte{part(0, 0, 40), with(func(p *initial) { p.to = "0102030405060708" })}, unclear, false, 2},
		{"another version meanwhile", [][]byte{part(0, 0, 40), with(func(p *initial) { p.version = v2 })}, unclear, false, 2},
		{"no QUIC meanwhile", [][]byte{part(0, 0, 40), []byte("x")}, unclear, false, 2},
		{"parts that differ", [][]byte{part(0, 0, 80), with(func(p *initial) { p.number, p.frames = 1, crypto(0, forged) })}, unclear, false, 2},
		{"frames that differ", [][]byte{with(func(p *initial) { p.frames = append(crypto(0, hello[:90]), crypto(0, forged)...) })}, unclear, false, 1},
		{"one number twice", [][]byte{part(0, 0, 40), part(0, 40, n)}, unclear, false, 2},
		{"spoilt", [][]byte{with(func(p *initial) { p.spoil = true })}, unclear, false, 1},
		{"reserved bits", [][]byte{with(func(p *initial) { p.first = 4 })}, unclear, false, 1},
		{"short ID", [][]byte{with(func(p *initial) { p.to = "01020304050607" })}, unclear, false, 1},
		{"a frame of streams", [][]byte{with(func(p *initial) { p.frames = append([]byte{8, 0, 0}, frames...) })}, unclear, false, 1},
		{"closed at once", [][]byte{with(func(p *initial) { p.frames = []byte{frameClose, 0, 0, 0} })}, unclear, false, 1},
		{"a frame cut short", [][]byte{with(func(p *initial) { p.frames = append(make([]byte, 1200), frameCrypto, 0, 0x40, 200, 1) })}, unclear, false, 1},
		{"beyond what is read", [][]byte{with(func(p *initial) { p.frames = crypto(mostHello+1, make([]byte, 4)) })}, unclear, false, 1},
		{"more pieces than are held", [][]byte{with(func(p *initial) {
			p.frames = nil
			for i := range 70 {
				p.frames = append(p.frames, crypto(2*i+1, hello[2*i+1:2*i+2])...)
			}
		})}, unclear, false, 1},
		{"many pieces that join", [][]byte{with(func(p *initial) { p.frames = byteEach(hello, 1) })}, a, false, 1},
		{"another message", [][]byte{with(func(p *initial) { p.frames = crypto(0, []byte{2, 0, 0, 1, 0}) })}, unclear, false, 1},
		{"hello too long", [][]byte{with(func(p *initial) { p.frames = crypto(0, []byte{1, 0, 0x40, 1}) })}, unclear, false, 1},
		{"nothing said for long", pings, unclear, false, MostDatagrams},
		{"a hello that never ends", [][]byte{part(0, 0, 40)}, flows.Hello{}, true, 1},
		{"retry", [][]byte{append([]byte{0xf0}, whole[1:]...)}, unclear, false, 1},

		{"nothing", [][]byte{{}}, flows.Hello{}, false, 1},
		{"short header", [][]byte{append([]byte{0x40}, make([]byte, 1300)...)}, flows.Hello{}, false, 1},
		{"dns", [][]byte{append([]byte{0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1}, make([]byte, 1200)...)}, flows.Hello{}, false, 1},
		{"rtp", [][]byte{append([]byte{0x80, 0x60}, make([]byte, 1200)...)}, flows.Hello{}, false, 1},
		{"version negotiation", [][]byte{append([]byte{0xc0, 0, 0, 0, 0, 0, 0}, make([]byte, 1200)...)}, flows.Hello{}, false, 1},
		{"a draft", [][]byte{with(func(p *initial) { p.version = 0xff00001d })}, unclear, false, 1},
		{"greased version", [][]byte{with(func(p *initial) { p.version = 0x1a2a3a4a })}, unclear, false, 1},
		{"google's", [][]byte{with(func(p *initial) { p.version = 0x51303530 })}, unclear, false, 1},
		{"no version", [][]byte{with(func(p *initial) { p.version = 0x12345678 })}, flows.Hello{}, false, 1},
		{"ID too long", [][]byte{append([]byte{0xc0, 0, 0, 0, 1, 21}, make([]byte, 1200)...)}, flows.Hello{}, false, 1},
		{"length beyond", [][]byte{whole[:1199]}, flows.Hello{}, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var d Datagrams
			var h flows.Hello
			more, took := true, 0
			for _, b := range tt.in {
				before := bytes.Clone(b)
				h, more = d.Look(b)
				took++
				if !bytes.Equal(b, before) {
					t.Fatal("the datagram was changed")
				}
				if !more {
					break
				}
			}
			if h != tt.want || more != tt.more || took != tt.took {
				t.Errorf("%v, %v after %d; want %v, %v after %d", h, more, took, tt.want, tt.more, tt.took)
			}
			if again, more := d.Look(whole); !tt.more && (again != h || more) {
				t.Errorf("asked again: %v, %v", again, more)
			}
			if !tt.more && d.hello != nil {
				t.Error("still holds what it gathered")
			}
		})
	}
}

// However a ClientHello is cut, shuffled and repeated, it is read as one.
func TestQUICShuffled(t *testing.T) {
	hello := message(ext(21, make([]byte, 1500)), sni("a.example"))
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var parts [][]byte
		for at := 0; at < len(hello); {
			k := min(1+r.IntN(200), len(hello)-at)
			overlap := min(r.IntN(20), at)
			parts = append(parts, crypto(at-overlap, hello[at-overlap:at+k]))
			at += k
		}
		r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		var d Datagrams
		var h flows.Hello
		more := true
		for i := 0; more && i < len(parts); i += 5 {
			frames := bytes.Join(parts[i:min(i+5, len(parts))], []byte{framePing, framePadding})
			h, more = d.Look(initial{version: v1, number: uint64(i), frames: frames, pad: 1200}.seal(t))
		}
		if h != named(flows.HelloQUIC, "a.example") || more {
			t.Fatalf("seed %d: %v, %v", seed, h, more)
		}
	}
}

func BenchmarkDatagrams(b *testing.B) {
	usual := clients(b)["quic-go-v1"][:2]
	var worst [][]byte // frames of a byte, as far apart as may be, again and again
	for i := range MostDatagrams {
		var frames []byte
		for k := 0; len(frames) < 16000; k++ { // seal has two bytes for the length
			frames = append(frames, crypto(1+2*(k%(mostSpans-1)), []byte{0})...)
		}
		worst = append(worst, initial{version: v1, number: uint64(i), frames: frames, pad: 1200}.seal(b))
	}
	for _, bb := range []struct {
		name string
		in   [][]byte
	}{{"usual", usual}, {"worst", worst}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var d Datagrams
				for _, x := range bb.in {
					if _, more := d.Look(x); !more {
						break
					}
				}
			}
		})
	}
}
