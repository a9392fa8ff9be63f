//go:build linux

package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/vmnetd/vmnetd/backend/control"
	guests "github.com/vmnetd/vmnetd/backend/guest"
	"github.com/vmnetd/vmnetd/qemu"
)

// pagePatience bounds each wait for what a browser shows: it shares two cores with a daemon and the test.
const pagePatience = 60 * time.Second

// shots, if set, is a folder for pictures of the page as the test sees it.
var shots = os.Getenv("VMNETD_UI_SHOTS")

// tab is a browser's tab with the page in it, as its user has it: what is known of it is what it shows.
type tab struct {
	t    *testing.T
	ctx  context.Context
	own  string // the page's origin
	down string // where downloads go

	mu     sync.Mutex
	errors []string // what the browser complained about
	asked  []string // requests that left the page's origin
}

// openTab starts Chromium, as an ordinary user.
func openTab(t *testing.T) *tab {
	t.Helper()
	bin, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v (on Debian: apt-get install chromium)", err)
		}
		t.Skip(err)
	}
	home, err := os.MkdirTemp(base, "browser")
	if err != nil {
		t.Fatal(err)
	}
	b := &tab{t: t, down: filepath.Join(home, "down")}
	if err := errors.Join(os.Mkdir(b.down, 0o755), os.Chmod(home, 0o755)); err != nil {
		t.Fatal(err)
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(bin), chromedp.UserDataDir(filepath.Join(home, "data")),
		chromedp.NoSandbox,                           // containers have none to give; it sees our own page alone
		chromedp.Flag("disable-dev-shm-usage", true), // and little shared memory
		chromedp.WindowSize(1280, 900),
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home, "TZ=UTC")
			cmd.Dir = home
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if os.Getuid() == 0 {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
			}
		}))
	if os.Getuid() == 0 {
		if err := errors.Join(os.Chown(home, nobody, nobody), os.Chown(b.down, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	alloc, end := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, endTab := chromedp.NewContext(alloc)
	b.ctx = ctx
	t.Cleanup(func() {
		chromedp.Cancel(ctx)
		endTab()
		end()
		os.RemoveAll(home)
	})
	// The browser lives as long as the context of the first call: that one has no patience.
	if err := chromedp.Listen(ctx, b.heard); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	tell(b, network.Enable, network.EnableParams{})
	tell(b, log.Enable, cdp.Empty{})
	tell(b, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: b.down})
	return b
}

func (b *tab) heard(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		b.errors = append(b.errors, fmt.Sprintf("exception: %s %+v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			b.errors = append(b.errors, fmt.Sprintf("console.%s", e.Type))
		}
	case *log.EventEntryAdded:
		// The browser notes answers of 400 and above; the page shows them.
		if e.Entry.Source != log.EntrySourceNetwork {
			b.errors = append(b.errors, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
		}
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; b.own != "" && !strings.HasPrefix(u, b.own+"/") && !strings.HasPrefix(u, "data:") && !strings.HasPrefix(u, "blob:"+b.own+"/") {
			b.asked = append(b.asked, u)
		}
	}
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pagePatience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("the browser: %v", err)
	}
}

// get is what an action says.
func get[T any](b *tab, a chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pagePatience)
	defer cancel()
	v, err := chromedp.Run(ctx, a)
	if err != nil {
		b.t.Fatalf("the browser: %v", err)
	}
	return v
}

// tell sends the browser a command.
func tell[P, R any](b *tab, c cdp.Command[P, R], params P) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pagePatience)
	defer cancel()
	if _, err := chromedp.Call(ctx, c, params); err != nil {
		b.t.Fatalf("the browser: %s: %v", c.Method, err)
	}
}

// open takes a link of 'vmnetd ui'.
func (b *tab) open(link string) {
	b.t.Helper()
	b.mu.Lock()
	b.own, _, _ = strings.Cut(link, "/#")
	b.mu.Unlock()
	tell(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: looks})
	b.do(chromedp.Navigate(link))
}

// looks are the tests' eyes: what a user reads.
const looks = `
const cards = () => [...document.querySelectorAll("#guest-cards h2")].map(e => e.textContent);
const card = name => [...document.querySelectorAll("#guest-cards .card")].find(c => c.querySelector("h2").textContent === name);
const shown = () => [...document.querySelectorAll(".grid-row")].filter(r => !r.hidden).sort((a, b) => a.ariaRowIndex - b.ariaRowIndex);
const rows = () => shown().map(r => r.innerText.replace(/\s+/g, " "));
const cells = c => shown().map(r => r.querySelector("." + c).textContent);
`

// js is what a script says, as T.
func js[T any](b *tab, script string) T {
	b.t.Helper()
	return get(b, chromedp.Evaluate[T](script))
}

// sees waits until a script says true; what it says last is told.
func (b *tab) sees(what, script string) {
	b.t.Helper()
	waitFor(b.t, pagePatience, what, func() error {
		if js[bool](b, "Boolean("+script+")") {
			return nil
		}
		said := js[string](b, `(document.querySelector("main section:not([hidden])")?.innerText ?? document.body.innerText).slice(0, 1500)`)
		return errors.New("the page has: " + said)
	})
}

// keys types.
func (b *tab) keys(s string) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(s))
}

// fill puts a text into a field, as typing does.
func (b *tab) fill(id, s string) {
	b.t.Helper()
	q, _ := json.Marshal(s)
	js[bool](b, fmt.Sprintf(`(e => { e.focus(); e.value = %s; e.dispatchEvent(new Event("input", {bubbles: true})); e.dispatchEvent(new Event("change", {bubbles: true})); return true })(document.getElementById(%q))`, q, id))
}

func (b *tab) shoot(name string) {
	if shots == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(shots, name+".png"), get(b, chromedp.CaptureScreenshot()), 0o644); err != nil {
		b.t.Error(err)
	}
}

// size makes the window a phone's or a desk's.
func (b *tab) size(width, height int64, phone bool) {
	b.t.Helper()
	tell(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: phone})
}

func (b *tab) scheme(name string) {
	b.t.Helper()
	tell(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}}})
}

// uiDaemon is a daemon on this machine's own loopback, and a 'vmnetd ui' beside it, both an ordinary user's.
type uiDaemon struct {
	dir, control, wire string
	bin                string
	client             *control.Client
}

func startUIDaemon(t *testing.T) *uiDaemon {
	t.Helper()
	bin, err := vmnetd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(base, "u")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &uiDaemon{dir: dir, control: filepath.Join(dir, "control.sock"), wire: filepath.Join(dir, "q.sock"), bin: bin}
	d.client = control.NewClient(d.control)
	t.Cleanup(d.client.Close)
	return d
}

// run starts a vmnetd and waits until it has said a line that has a text in it. What it returns ends it.
func (d *uiDaemon) run(t *testing.T, says string, args ...string) (line string, end func()) {
	t.Helper()
	uid := os.Getuid()
	if uid == 0 {
		uid = nobody
	}
	var out, errs output
	cmd := as(uid, d.bin, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir, "XDG_RUNTIME_DIR=" + d.dir, "LC_ALL=C"}
	cmd.Dir = d.dir
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var once sync.Once
	end = func() {
		once.Do(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("vmnetd %s: %v: %s", args[0], err, errs.String())
				}
			case <-time.After(patience):
				t.Errorf("vmnetd %s goes on after SIGTERM", args[0])
				cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go into the log
				<-ended
			}
			if t.Failed() {
				t.Logf("vmnetd %s: %s%s", strings.Join(args, " "), out.String(), errs.String())
			}
		})
	}
	t.Cleanup(end)
	wait(t, "vmnetd "+args[0], func() error {
		for l := range strings.Lines(out.String()) {
			if strings.Contains(l, says) {
				line = strings.TrimSpace(l)
				return nil
			}
		}
		return errors.New(out.String() + errs.String())
	})
	return line, end
}

func (d *uiDaemon) serve(t *testing.T, args ...string) (end func()) {
	t.Helper()
	_, end = d.run(t, "control ", append([]string{"serve", "--control", d.control, "--qemu", "unix:" + d.wire}, args...)...)
	return end
}

// plug is a guest with traffic of its own.
func (d *uiDaemon) plug(t *testing.T, name string) *guests.Guest {
	t.Helper()
	c, err := net.Dial("unix", d.wire)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g, err := guests.New(ctx, qemu.NewLink(c), guests.Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// talkers is a server on this machine's loopback that sends what it gets back, whom guests know as the gateway.
func talkers(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// TestPage: what a user does with the page, in a real browser, which sees a real daemon's guests.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("end to end: not with -short")
	}
	b := openTab(t)
	d := startUIDaemon(t)
	flags := []string{"--allow", "reject tcp any:25", "--allow", "ask tcp any:2222"}
	end := d.serve(t, flags...)
	line, _ := d.run(t, "the page is at", "ui", "--no-open", "--control", d.control)
	_, link, _ := strings.Cut(line, "the page is at ")

	web := d.plug(t, "web")
	d.plug(t, "build")
	d.plug(t, hostileName)
	port := talkers(t)
	inside := netip.AddrPortFrom(web.Gateway4(), port)
	talk, err := web.DialTCP(context.Background(), netip.AddrPort{}, inside)
	if err != nil {
		t.Fatal(err)
	}
	var talking sync.WaitGroup
	talking.Go(func() { // a megabyte a second each way
		block := make([]byte, 32<<10)
		for {
			if _, err := talk.Write(block); err != nil {
				return
			}
			if _, err := io.ReadFull(talk, block); err != nil {
				return
			}
			time.Sleep(30 * time.Millisecond)
		}
	})
	t.Cleanup(func() { talk.Close(); talking.Wait() })

	b.open(link)
	run := func(name string, f func(*testing.T)) bool {
		return t.Run(name, func(t *testing.T) {
			b.t = t
			defer func() { b.t = nil }()
			f(t)
		})
	}

	run("guests", func(t *testing.T) {
		b.sees("the guests", `cards().length === 3 && card("web") && card("build")`)
		b.sees("web's rate", `/[kM]B\/s/.test(card("web").querySelector(".figs").innerText)`)
		b.sees("its sparkline", `card("web").querySelector(".spark-sent").getAttribute("d").includes("L")`)
		b.sees("its addresses", fmt.Sprintf(`card("web").innerText.includes(%q)`, web.Addr4()))
		b.sees("its MAC", fmt.Sprintf(`(card("web").querySelector("summary").click(), card("web").innerText.includes(%q))`, web.MAC()))
		before := js[string](b, `card("web").querySelector(".small").textContent`)
		b.sees("bytes that move", fmt.Sprintf(`card("web").querySelector(".small").textContent !== %q`, before))
	})

	run("flows", func(t *testing.T) {
		b.keys("2")
		at := fmt.Sprintf("10.0.2.2:%d", port)
		b.sees("the conversation", fmt.Sprintf(`rows().some(r => r.includes("web") && r.includes(%q) && r.includes("open") && /[kM]B\/s/.test(r))`, at))
		b.fill("flow-filter", fmt.Sprintf("guest:web :%d bytes>10k", port))
		b.sees("one that the filter leaves", fmt.Sprintf(`rows().length === 1 && rows()[0].includes(%q)`, at))
		b.fill("flow-filter", "no such thing")
		b.sees("none", `rows().length === 0`)
		b.fill("flow-filter", "")

		// Several, with different figures, to sort.
		for i := range 4 {
			c, err := web.DialTCP(context.Background(), netip.AddrPort{}, inside)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(make([]byte, 1000<<i)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1000<<i)); err != nil {
				t.Fatal(err)
			}
		}
		b.sees("them", `["1.0 kB", "2.0 kB", "4.0 kB", "8.0 kB"].every(n => cells("c-up").includes(n))`)
		small := `cells("c-up").filter(c => ["1.0 kB", "2.0 kB", "4.0 kB", "8.0 kB"].includes(c)).join()`
		js[bool](b, `(document.querySelector("[data-column=up]").click(), true)`)
		b.sees("most first", small+` === "8.0 kB,4.0 kB,2.0 kB,1.0 kB" && document.querySelector("[aria-sort=descending]").textContent === "Sent"`)
		js[bool](b, `(document.querySelector("[data-column=up]").click(), true)`)
		b.sees("fewest first", small+` === "1.0 kB,2.0 kB,4.0 kB,8.0 kB" && document.querySelector("[aria-sort=ascending]").textContent === "Sent"`)
	})

	run("refused", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if c, err := web.DialContext(ctx, "tcp", "10.0.2.2:25"); err == nil {
			c.Close()
			t.Fatal("port 25 is open")
		}
		js[bool](b, `(document.getElementById("flow-state").value = "refused", document.getElementById("flow-state").dispatchEvent(new Event("change")), true)`)
		b.sees("the refused attempt", `rows().some(r => r.includes("10.0.2.2:25") && r.includes("refused: policy"))`)
		js[bool](b, `([...document.querySelectorAll(".grid-row")].find(r => !r.hidden && r.innerText.includes(":25")).click(), true)`)
		b.sees("why", `document.getElementById("flow-detail").innerText.includes("a rule of the policy says no") && document.getElementById("flow-detail").innerText.includes("reject tcp any:25")`)
		b.shoot("refused")
		b.keys(kb.Escape)
		b.sees("the details closed", `document.getElementById("flow-detail").hidden && document.activeElement.getAttribute("role") === "grid"`)
		js[bool](b, `(document.getElementById("flow-state").value = "", document.getElementById("flow-state").dispatchEvent(new Event("change")), true)`)
	})

	run("question", func(t *testing.T) {
		held := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), pagePatience)
			defer cancel()
			c, err := web.DialContext(ctx, "tcp", "10.0.2.2:2222")
			if err == nil {
				c.Close()
			}
			held <- err
		}()
		b.sees("the question", `document.querySelector(".ask")?.innerText.includes("10.0.2.2:2222")`)
		b.shoot("question")
		js[bool](b, `([...document.querySelectorAll(".ask button")].find(e => e.textContent === "Deny").click(), true)`)
		b.sees("no question", `!document.querySelector(".ask")`)
		if err := <-held; err == nil {
			t.Error("what was denied came through")
		}
	})

	run("keyboard", func(t *testing.T) {
		// All of a forward's life, by keys alone.
		l, err := web.ListenTCP(netip.AddrPortFrom(netip.Addr{}, 7))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}()
		js[bool](b, `(document.activeElement.blur(), true)`)
		b.keys("3")
		b.sees("the forwards", `!document.getElementById("view-forwards").hidden`)
		b.keys("/")
		b.sees("the rule's field", `document.activeElement.id === "forward-rule"`)
		js[bool](b, `(document.activeElement.value = "", true)`) // the driver types the key even where the page has taken it
		b.keys("0:<img src=x onerror=alert(1)>:99999" + kb.Enter)
		b.sees("what is wrong with it", `document.getElementById("forward-error").innerText.includes("<img src=x") || document.getElementById("forward-error").innerText.length > 20`)
		b.shoot("forward-error")
		js[bool](b, `(document.getElementById("forward-rule").value = "", true)`)
		b.keys("0:web:7" + kb.Enter)
		b.sees("the forward", `/127\.0\.0\.1:\d+:web:7/.test(document.getElementById("forward-table").innerText)`)
		at := js[string](b, `/127\.0\.0\.1:\d+/.exec(document.getElementById("forward-table").innerText)[0]`)
		if err := echoes(at); err != nil {
			t.Errorf("through the forward: %v", err)
		}
		b.sees("its conversation counted", `[...document.querySelectorAll("#forward-table tbody tr")].some(r => r.cells[4].textContent !== "0")`)
		b.shoot("forwards")
		// From the field, the way to the button is the order of the page.
		for i := 0; !strings.HasPrefix(js[string](b, `document.activeElement.getAttribute("aria-label") ?? ""`), "Remove "+at+":web:7"); i++ {
			if i == 10 {
				t.Fatalf("Tab does not lead to the button; it stands at %s", js[string](b, `document.activeElement.outerHTML.slice(0, 200)`))
			}
			b.keys(kb.Tab)
			if !js[bool](b, `document.activeElement.matches(":focus-visible") && getComputedStyle(document.activeElement).outlineStyle !== "none"`) {
				t.Errorf("the focus is not seen at %s", js[string](b, `document.activeElement.outerHTML.slice(0, 200)`))
			}
		}
		b.keys(kb.Enter)
		b.sees("the way back", `!document.getElementById("toast-undo").hidden && document.getElementById("toast-text").textContent.includes("Removed")`)
		b.sees("it gone", `!document.getElementById("forward-table").innerText.includes(":web:7")`)
		if err := echoes(at); err == nil {
			t.Error("a forward that was removed goes on")
		}

		// The flows, row by row.
		js[bool](b, `(document.activeElement.blur(), true)`)
		b.keys("2/")
		b.sees("the filter", `document.activeElement.id === "flow-filter"`)
		js[bool](b, `(document.activeElement.value = "", true)`) // the driver types the key even where the page has taken it
		b.keys("open")
		b.sees("what is filtered", `document.activeElement.value === "open" && rows().length > 0`)
		b.keys(kb.Escape)
		b.sees("the filter empty", `document.getElementById("flow-filter").value === ""`)
		b.keys(kb.Escape)
		js[bool](b, `(document.querySelector(".grid").focus(), true)`)
		b.keys(kb.Home + kb.ArrowDown)
		b.sees("the second row", `document.getElementById(document.querySelector(".grid").getAttribute("aria-activedescendant"))?.getAttribute("aria-rowindex") === "3"`)
		b.keys(kb.Enter)
		b.sees("its details", `!document.getElementById("flow-detail").hidden`)
		b.keys(kb.Escape + "?")
		b.sees("the help", `document.getElementById("help").open`)
		b.keys(kb.Escape)
		b.sees("no help", `!document.getElementById("help").open`)
	})

	run("names", func(t *testing.T) {
		b.keys("4")
		b.sees("the leases", fmt.Sprintf(`document.getElementById("lease-table").innerText.includes(%q)`, web.Addr4()))
		add := func(name, typ, value string) {
			b.fill("dns-name", name)
			b.fill("dns-type", typ)
			b.fill("dns-value", value)
			js[bool](b, `(document.querySelector("#dns-form button").click(), true)`)
		}
		add("db", "A", "10.0.2.77")
		b.sees("the record", `document.getElementById("dns-table").innerText.includes("10.0.2.77")`)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if list, err := web.LookupNetIP(ctx, "db.internal"); err != nil || len(list) != 1 || list[0].String() != "10.0.2.77" {
			t.Errorf("a guest asks for db.internal: %v, %v", list, err)
		}
		add("note", "TXT", `"`+hostileName+`"`)
		b.sees("markup as text", fmt.Sprintf(`document.getElementById("dns-table").innerText.includes(%q)`, hostileName))
		b.shoot("names")
		js[bool](b, `([...document.querySelectorAll("#dns-table button")].find(e => e.getAttribute("aria-label").includes("10.0.2.77")).click(), true)`)
		b.sees("the record gone", `!document.getElementById("dns-table").innerText.includes("10.0.2.77")`)
		add("db", "A", "not an address")
		b.sees("what is wrong", `document.getElementById("dns-error").innerText.length > 10`)
	})

	run("capture", func(t *testing.T) {
		js[bool](b, `(document.activeElement.blur(), true)`)
		b.keys("5")
		b.sees("the captures", `!document.getElementById("view-captures").hidden && document.getElementById("capture-guest").options.length > 1`)
		b.fill("capture-filter", "tcp prot 80")
		js[bool](b, `(document.querySelector("#capture-form button").click(), true)`)
		b.sees("what is wrong with the filter", `document.getElementById("capture-error").innerText.includes("prot")`)
		b.fill("capture-filter", fmt.Sprintf("tcp port %d", port))
		js[bool](b, `(document.getElementById("capture-guest").selectedIndex = [...document.getElementById("capture-guest").options].findIndex(o => o.text.startsWith("web")), document.querySelector("#capture-form button").click(), true)`)
		b.sees("that it grows", `/[kM]B of 16\.8 MB/.test(document.getElementById("capture-table").innerText)`)
		b.shoot("capture")
		press := func(label string) string {
			return fmt.Sprintf(`([...document.querySelectorAll("#capture-table button")].find(e => !e.hidden && e.textContent === %q)?.click(), true)`, label)
		}
		js[bool](b, press("Stop"))
		b.sees("that it stands", `document.getElementById("capture-table").innerText.includes("stopped")`)
		js[bool](b, press("Download"))
		var file []byte
		wait(t, "the file", func() (err error) {
			list, _ := filepath.Glob(filepath.Join(b.down, "*.pcapng"))
			if len(list) != 1 {
				return fmt.Errorf("there is %q", list)
			}
			file, err = os.ReadFile(list[0])
			return err
		})
		if n, err := packetsOf(file); err != nil || n < 10 {
			t.Errorf("the file has %d packets of %d bytes: %v", n, len(file), err)
		}
		js[bool](b, press("Forget"))
		b.sees("that it is forgotten", `!document.getElementById("capture-table").innerText.includes("stopped")`)
	})

	run("events and status", func(t *testing.T) {
		js[bool](b, `(document.activeElement.blur(), location.hash = "#events", true)`)
		b.sees("the events", `["guest-in", "lease", "refused"].every(k => document.getElementById("event-table").innerText.includes(k))`)
		b.shoot("events")
		js[bool](b, `(document.getElementById("event-save").click(), true)`)
		var saved []byte
		wait(t, "the events, saved", func() (err error) {
			saved, err = os.ReadFile(filepath.Join(b.down, "vmnetd-events.jsonl"))
			return err
		})
		if !json.Valid(saved[:max(0, strings.IndexByte(string(saved), '\n'))]) {
			t.Errorf("events saved as %.200q", saved)
		}
		js[bool](b, `(location.hash = "#status", true)`)
		b.sees("the status", `document.getElementById("status-body").innerText.includes("10.0.2.0/24") && document.getElementById("status-body").innerText.includes("Sandbox")`)
		b.shoot("status")
	})

	run("dark, light, phone", func(t *testing.T) {
		back := map[string]string{}
		for _, s := range []string{"dark", "light"} {
			b.scheme(s)
			js[bool](b, `(location.hash = "#guests", true)`)
			b.sees("the guests", `card("web")`)
			back[s] = js[string](b, `getComputedStyle(document.body).backgroundColor`)
			b.shoot("guests-" + s)
			js[bool](b, `(location.hash = "#flows", true)`)
			b.sees("the flows", `rows().length > 0`)
			b.shoot("flows-" + s)
		}
		if back["dark"] == back["light"] {
			t.Errorf("dark and light are both %s", back["dark"])
		}
		js[bool](b, `(document.activeElement.blur(), true)`)
		b.keys("tt") // dark, whatever the system says
		b.sees("dark by choice", fmt.Sprintf(`getComputedStyle(document.body).backgroundColor === %q`, back["dark"]))
		b.keys("t")
		b.size(360, 740, true)
		for _, v := range []string{"guests", "flows", "forwards", "names", "captures", "events", "status"} {
			js[bool](b, fmt.Sprintf(`(location.hash = "#%s", true)`, v))
			b.sees(v, fmt.Sprintf(`!document.getElementById("view-%s").hidden && innerWidth === 360`, v))
			if w := js[int](b, `Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)`); w > 360 {
				t.Errorf("%s: %d pixels wide on a phone of 360", v, w)
			}
			b.shoot("phone-" + v)
		}
		b.size(1280, 900, false)
	})

	run("the daemon goes and comes", func(t *testing.T) {
		js[bool](b, `(location.hash = "#guests", true)`)
		end()
		b.sees("that it is away", `!document.getElementById("away").hidden && document.getElementById("away").innerText.includes("The daemon is away")`)
		b.shoot("away")
		d.serve(t, flags...)
		b.sees("that it is back", `document.getElementById("away").hidden && document.getElementById("link-text").textContent === "live" && cards().length === 0`)
		d.plug(t, "again")
		b.sees("another guest", `card("again")`)
	})

	b.t = t
	b.blameless()
}

// TestPageMany: ten thousand conversations in the page at once. The browser's own clock says whether it froze.
func TestPageMany(t *testing.T) {
	if testing.Short() {
		t.Skip("end to end: not with -short")
	}
	want := 10_000
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	// Each takes a descriptor of the daemon's and one of the test's.
	if most := int(lim.Max)*8/10 - 500; most < want {
		if want = most; want < 1000 {
			t.Skipf("%d descriptors are too few", lim.Max)
		}
		t.Logf("only %d conversations: a process may have %d descriptors", want, lim.Max)
	}
	b := openTab(t)
	d := startUIDaemon(t)
	d.serve(t)
	line, _ := d.run(t, "the page is at", "ui", "--no-open", "--control", d.control)
	_, link, _ := strings.Cut(line, "the page is at ")
	web := d.plug(t, "web")
	hold := make(chan struct{})
	inside := netip.AddrPortFrom(web.Gateway4(), holders(t, hold))
	var dialing sync.WaitGroup
	next := make(chan int)
	for range 32 {
		dialing.Go(func() {
			for i := range next {
				c, err := web.DialTCP(context.Background(), netip.AddrPort{}, inside) // it ends with the guest
				if err == nil && i%20 == 0 {
					_, err = c.Write(make([]byte, 100+i))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Cleanup(func() { close(hold) })
	began := time.Now()

	b.open(link)
	b.sees("the guest", `card("web")`)
	b.keys("2")
	// From here on, each of the page's turns that takes longer than a screen may wait is noted.
	js[bool](b, `(window.long = [], new PerformanceObserver(l => { for (const e of l.getEntries()) window.long.push(Math.round(e.duration)); }).observe({ type: "longtask" }), true)`)
	for i := range want {
		next <- i
	}
	close(next)
	dialing.Wait()
	t.Logf("%d conversations after %v", want, time.Since(began).Round(time.Millisecond))
	all := fmt.Sprintf(`document.getElementById("flow-totals").textContent.startsWith(%q)`, fmt.Sprintf("%d,%03d of", want/1000, want%1000))
	b.sees("all of them", all)
	t.Logf("seen after %v", time.Since(began).Round(time.Millisecond))

	rows := js[int](b, `document.querySelectorAll(".grid-row").length`)
	if all := js[int](b, `document.querySelectorAll("*").length`); rows > 100 || all > 3000 {
		t.Errorf("%d elements for rows, %d in all", rows, all)
	}
	b.shoot("many")
	// To the end and back, sorted and filtered, while they go on.
	js[bool](b, `(document.querySelector(".grid").focus(), true)`)
	b.keys(kb.End)
	b.sees("the last", fmt.Sprintf(`document.querySelector(".grid-row.active")?.ariaRowIndex === "%d"`, want+1))
	js[bool](b, `(document.querySelector("[data-column=name]").click(), true)`)
	b.sees("another order", `document.querySelector("[data-column=name]").parentElement.ariaSort === "ascending"`)
	b.fill("flow-filter", "no such thing")
	b.sees("none", `rows().length === 0`)
	b.fill("flow-filter", "10.0.2")
	b.sees("all of them again", all)
	for i := range 20 {
		js[bool](b, fmt.Sprintf(`(document.querySelector(".grid").scrollTop = %d, true)`, i*15_000))
	}
	b.sees("rows where it was scrolled to", `rows().length > 10 && rows()[0].includes("web")`)
	long := js[[]int](b, `window.long`)
	t.Logf("turns of 50 ms and more: %v ms; %d rows, %d elements", long, rows, js[int](b, `document.querySelectorAll("*").length`))
	for _, ms := range long {
		if ms > 1000 {
			t.Errorf("the page stood still for %d ms", ms)
		}
	}
	b.blameless()
	t.Logf("done after %v", time.Since(began).Round(time.Millisecond))
}

// holders is a server whose connections last until hold is closed.
func holders(t *testing.T, hold chan struct{}) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		held.Wait()
	})
	held.Go(func() {
		var list []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			list = append(list, c)
		}
		<-hold
		for _, c := range list {
			c.Close()
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// hostileName is what a guest calls itself that does not like its user.
const hostileName = `<img src=x onerror=document.title='owned'>`

// packetsOf counts the packets of a pcapng file, and says what is wrong with its blocks (draft-ietf-opsawg-pcapng).
func packetsOf(file []byte) (n int, err error) {
	for at := 0; at < len(file); {
		if len(file)-at < 12 {
			return n, fmt.Errorf("%d bytes are left over", len(file)-at)
		}
		kind, size := binary.LittleEndian.Uint32(file[at:]), int(binary.LittleEndian.Uint32(file[at+4:]))
		if at == 0 && (kind != 0x0a0d0d0a || binary.LittleEndian.Uint32(file[8:]) != 0x1a2b3c4d) {
			return 0, fmt.Errorf("it begins with %x", file[:12])
		}
		if size < 12 || size%4 != 0 || size > len(file)-at || binary.LittleEndian.Uint32(file[at+size-4:]) != uint32(size) {
			return n, fmt.Errorf("a block of %d bytes at %d of %d", size, at, len(file))
		}
		if kind == 6 { // an enhanced packet block
			n++
		}
		at += size
	}
	return n, nil
}

// echoes says why a connection to an echo server does not work.
func echoes(at string) error {
	c, err := net.DialTimeout("tcp", at, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}

// blameless looks at what must never have happened.
func (b *tab) blameless() {
	b.t.Helper()
	if js[bool](b, `document.title.includes("owned") || document.querySelector("img[src=x]") !== null`) {
		b.t.Error("a guest's name became markup")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.errors) > 0 {
		b.t.Errorf("the browser complains: %q", b.errors)
	}
	if len(b.asked) > 0 {
		b.t.Errorf("the page asked elsewhere: %q", b.asked)
	}
}
