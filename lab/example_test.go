package lab_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/vmnetd/vmnetd/lab"
	"github.com/vmnetd/vmnetd/lab/topology"
)

// A lab in a program: two nodes, the second once the first serves.
func Example() {
	top, err := topology.Parse("shop.yaml", []byte(`
name: shop
networks:
  lan: {net: 10.20.0.0/24}
nodes:
  web:
    kind: netns
    interfaces: [lan]
    command: [busybox, httpd, -f, -p, "80"]
    wait: tcp:80
  client:
    kind: netns
    interfaces: [lan]
    after: [web]
`), nil)
	if err != nil {
		log.Fatal(err)
	}
	l, err := lab.New(lab.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := l.Apply(ctx, top); err != nil {
		log.Fatal(err)
	}
	if err := l.Wait(ctx); err != nil {
		log.Fatal(err)
	}
	out, err := l.Node("client").Output(ctx, "ping", "-c", "1", "web.internal")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", out)
}
