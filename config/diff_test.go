package config

import (
	"fmt"
	"slices"
	"testing"
)

func TestDiff(t *testing.T) {
	parse := func(s string) *File {
		t.Helper()
		f, err := Parse("f", []byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	old := parse(`
networks:
  - net: 10.0.2.0/24
    mtu: auto
    forward: ["1:1", "2:2", "2:2"]
    static: {"52:54:00:12:34:56": [10.0.2.20], "52:54:00:12:34:57": [10.0.2.21]}
    limits: {flows: 100, up: 10mbit}
    guest-limits: {"52:54:00:12:34:56": {flows: 7}}
    isolate: false
  - name: lab
    net: 10.7.0.0/24
  - name: gone
    net: 10.8.0.0/24
doors: {qemu: ["unix:a"]}
log: {level: info}
`)
	now := parse(`
networks:
  - name: new
    net: 10.9.0.0/24
  - name: lab
    net: 10.7.1.0/24
  - name: default
    net: 10.0.2.0/24
    forward: ["2:2", "1:1", "3:3"]
    static: {"52:54:00:12:34:56": [10.0.2.22], "52:54:00:12:34:57": [10.0.2.21]}
    limits: {flows: 200, up: 10mbit}
    guest-limits: {"52:54:00:12:34:56": {flows: 8, dns: 1}}
    isolate: true
doors: {qemu: ["unix:a"], vfkit: ["unix:b"]}
log: {level: info}
control: c
`)
	other, same := Diff(old, now)
	text := func(list []Difference) (s []string) {
		for _, d := range list {
			s = append(s, fmt.Sprintf("%s %s %q %q %t %t %s", d.Network, d.Key, d.Old, d.New, d.Added, d.Removed, d.Flag))
		}
		slices.Sort(s)
		return s
	}
	for _, c := range []struct {
		what      string
		got, want []string
	}{
		{"other", text(other), []string{
			` control "" "c" true false control`,
			` doors.vfkit "" "unix:b" true false vfkit`,
			`default networks[2].forward "" "3:3" true false forward`,
			`default networks[2].forward "2:2" "" false true forward`,
			`default networks[2].guest-limits.52:54:00:12:34:56.dns "" "1" true false limit`,
			`default networks[2].guest-limits.52:54:00:12:34:56.flows "7" "8" false false limit`,
			`default networks[2].isolate "false" "true" false false isolate`,
			`default networks[2].limits.flows "100" "200" false false limit`,
			`default networks[2].mtu "auto" "" false true mtu`,
			`default networks[2].name "" "default" true false name`,
			`default networks[2].static.52:54:00:12:34:56 "10.0.2.20" "10.0.2.22" false false static`,
			`gone networks[2] "gone" "" false true `,
			`lab networks[1].net "10.7.0.0/24" "10.7.1.0/24" false false net`,
			`new networks[0] "" "new" true false `,
		}},
		{"same", text(same), []string{
			` doors.qemu "unix:a" "unix:a" false false qemu`,
			` log.level "info" "info" false false log-level`,
			`default networks[2].forward "1:1" "1:1" false false forward`,
			`default networks[2].forward "2:2" "2:2" false false forward`,
			`default networks[2].limits.up "10mbit" "10mbit" false false limit`,
			`default networks[2].net "10.0.2.0/24" "10.0.2.0/24" false false net`,
			`default networks[2].static.52:54:00:12:34:57 "10.0.2.21" "10.0.2.21" false false static`,
			`lab networks[1].name "lab" "lab" false false name`,
		}},
	} {
		slices.Sort(c.want)
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s:\n%q\nwant\n%q", c.what, c.got, c.want)
		}
	}
	if other, same := Diff(old, parse(old.String())); len(other) > 0 || len(same) == 0 {
		t.Errorf("with itself: %+v", other)
	}
}
