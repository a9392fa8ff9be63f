package portforward_test

import (
	"fmt"

	"github.com/vmnetd/vmnetd/portforward"
)

// Whatever the syntax, one canonical print.
func ExampleParseRule() {
	for _, text := range []string{
		"2222:22",
		"hostfwd=udp:[::1]:5353-[fd00::15]:53",
		"8000-8002,9000,~8001",
		"127.0.0.1:2222:52-54-00-12-34-56:22/tcp,source=client",
		"unix:/run/web.sock-:80",
	} {
		rules, err := portforward.ParseRule(text)
		if err != nil {
			fmt.Println(err)
		}
		for _, r := range rules {
			fmt.Println(r)
		}
	}
	_, err := portforward.ParseRule("8010-8000")
	fmt.Println(err)
	// Output:
	// 127.0.0.1:2222:22/tcp
	// [::1]:5353:[fd00::15]:53/udp
	// 127.0.0.1:8000:8000/tcp
	// 127.0.0.1:8002:8002/tcp
	// 127.0.0.1:9000:9000/tcp
	// 127.0.0.1:2222:[52:54:00:12:34:56]:22/tcp,source=client
	// unix:/run/web.sock-:80
	// port forward "8010-8000": range 8010-8000 runs backwards: write 8000-8010
}
