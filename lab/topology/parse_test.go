package topology

import (
	"encoding/json"
	"testing"
)

func TestShop(t *testing.T) {
	l, err := Read("testdata/shop.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.MarshalIndent(l, "", " ")
	t.Logf("%s", b)
}
