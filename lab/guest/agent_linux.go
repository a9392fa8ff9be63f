package guest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputDelay is how long a command's pipes are read after its end, if somebody holds them: what it wrote itself is there.
const outputDelay = 200 * time.Millisecond

// leaseWait bounds the wait for what DHCP gives: the agent's first answer says that the machine can be used, and one with an
// address is more of use. DHCP's second try comes after a second.
const leaseWait = 5 * time.Second

// again is how often what the kernel and udhcpc make is looked for.
const again = 20 * time.Millisecond

// init is where the agent runs, whatever program this is. In the small Linux nothing else has this name.
func init() {
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == AgentName {
		os.Exit(AgentMain(os.Args[1:]))
	}
}

// AgentMain is the agent's program: it ends only if it cannot be one.
func AgentMain(args []string) int {
	f := flag.NewFlagSet(AgentName, flag.ContinueOnError)
	port := f.String("port", "", "the character `device` to answer at; none: the virtio port "+PortName)
	version := f.Bool("version", false, "say which version this is, and end")
	if err := f.Parse(args); err != nil {
		return 2
	}
	if *version {
		fmt.Println(agentVersion)
		return 0
	}
	for end := time.Now().Add(leaseWait); len(missing(f.Args())) > 0 && time.Now().Before(end); {
		time.Sleep(again)
	}
	if err := runAgent(*port); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", AgentName, err)
		return 1
	}
	return 0
}

func missing(files []string) (not []string) {
	for _, n := range files {
		if _, err := os.Stat(n); err != nil {
			not = append(not, n)
		}
	}
	return not
}

// portPatience bounds the wait for the driver's port: it is there a moment after its module is.
const portPatience = 10 * time.Second

func runAgent(port string) error {
	for end := time.Now().Add(portPatience); port == ""; time.Sleep(again) {
		if port = virtioPort(); port == "" && time.Now().After(end) {
			return fmt.Errorf("no virtio port %s", PortName)
		}
	}
	f, err := os.OpenFile(port, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := raw(f); err != nil {
		return fmt.Errorf("%s: %w", port, err)
	}
	a := &Agent{Shutdown: shutdown}
	for {
		// The port reads as ended while nobody holds its other end. Who comes again is heard.
		if err := a.Serve(f); !errors.Is(err, io.EOF) {
			return err
		}
		time.Sleep(again)
	}
}

// virtioPort finds the port by its name; there is no udev to make a link of that.
func virtioPort() string {
	all, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, n := range all {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == PortName {
			return "/dev/" + filepath.Base(filepath.Dir(n))
		}
	}
	return ""
}

// raw has a terminal pass on bytes as they are. Another device does so already.
func raw(f *os.File) error {
	fd := int(f.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil
	}
	// As cfmakeraw(3).
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// shutdown ends the machine at once: what the small Linux has is in memory.
func shutdown(mode string) error {
	unix.Sync()
	how := map[string]int{"powerdown": unix.LINUX_REBOOT_CMD_POWER_OFF, "halt": unix.LINUX_REBOOT_CMD_HALT, "reboot": unix.LINUX_REBOOT_CMD_RESTART}[mode]
	return os.NewSyscallError("reboot", unix.Reboot(how))
}

// ownSession lets what a command starts be ended with it, and keeps it from the console.
func ownSession(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

func exitOf(s *os.ProcessState) (code, signal int) {
	if s == nil {
		return -1, 0
	}
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 0, int(w.Signal())
	}
	return s.ExitCode(), 0
}
