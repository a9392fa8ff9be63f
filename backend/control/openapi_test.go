package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
)

// described is the document as others read it.
var described = sync.OnceValues(func() (validator.Validator, error) {
	b, err := json.Marshal((&Server{Version: "test"}).openAPI())
	if err != nil {
		return nil, err
	}
	doc, err := libopenapi.NewDocument(b)
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		return nil, fmt.Errorf("%v", errs)
	}
	return v, nil
})

// asDescribed holds an answer against the document.
func asDescribed(t *testing.T, req *http.Request, resp *http.Response, body string) {
	t.Helper()
	known := false
	for _, rt := range (&Server{}).routes() {
		if _, pattern := muxOf(rt.path).Handler(req); pattern != "" {
			_, known = rt.on[req.Method]
			break
		}
	}
	if !known || strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream) {
		return // HEAD, OPTIONS, and what there is not: checkForm looks at errors
	}
	v, err := described()
	if err != nil {
		t.Fatal(err)
	}
	r := *resp
	r.Body = io.NopCloser(bytes.NewReader([]byte(body)))
	if ok, errs := v.ValidateHttpResponse(req, &r); !ok {
		for _, e := range errs {
			t.Errorf("%s %s: %d %.500s\nis not as the document has it: %s: %s", req.Method, req.URL, resp.StatusCode, body, e.Message, e.Reason)
			for _, s := range e.SchemaValidationErrors {
				t.Errorf("  at %s: %s", s.Location, s.Reason)
			}
		}
	}
}

var muxes sync.Map

func muxOf(path string) *http.ServeMux {
	if m, ok := muxes.Load(path); ok {
		return m.(*http.ServeMux)
	}
	m := http.NewServeMux()
	m.HandleFunc(path, func(http.ResponseWriter, *http.Request) {})
	muxes.Store(path, m)
	return m
}

func TestOpenAPI(t *testing.T) {
	v, err := described()
	if err != nil {
		t.Fatal(err)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Errorf("no OpenAPI 3.1: %s: %s", e.Message, e.Reason)
			for _, s := range e.SchemaValidationErrors {
				t.Errorf("  at %s: %s", s.Location, s.Reason)
			}
		}
	}
	if _, odd := (&Server{}).describe(); len(odd) > 0 {
		t.Errorf("the document does not tell all: %s", strings.Join(odd, "; "))
	}
	r := newRig(t)
	// The validator finds what is wrong.
	req, _ := http.NewRequest("GET", "http://vmnetd/v1/status", nil)
	for _, body := range []string{`{"version":1,"pid":1,"listen":[],"networks":[]}`, `{"version":"1"}`, `[]`} {
		wrong := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {js}}, Body: io.NopCloser(strings.NewReader(body)), Request: req}
		if ok, _ := v.ValidateHttpResponse(req, wrong); ok {
			t.Errorf("%s passes for a status", body)
		}
	}
	_, text := r.do("GET", openAPIPath+".json", "", "")
	var doc struct {
		OpenAPI string
		Paths   map[string]map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%v %.200s", err, text)
	}
	resp, y := r.do("GET", openAPIPath+".yaml", "", "")
	back, err := yaml.YAMLToJSON([]byte(y))
	if err != nil || resp.Header.Get("Content-Type") != "application/yaml" {
		t.Fatalf("%v %v", err, resp.Header)
	}
	var a, b any
	json.Unmarshal([]byte(text), &a)
	if err := json.Unmarshal(back, &b); err != nil || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("YAML and JSON differ: %v", err)
	}

	// What the table has the document has, and what the document has the server answers.
	for _, rt := range r.srv.routes() {
		for method, op := range rt.on {
			var o struct {
				Summary    string
				Parameters []struct{ Name, In, Description string }
			}
			if err := json.Unmarshal(doc.Paths[rt.path][strings.ToLower(method)], &o); err != nil {
				t.Errorf("%s %s is not in the document: %v", method, rt.path, err)
			}
			var have, want []string
			for _, p := range o.Parameters {
				if p.In == "query" && p.Description != "" {
					have = append(have, p.Name)
				}
			}
			for _, p := range op.params() {
				want = append(want, p.name)
			}
			if slices.Sort(have); !slices.Equal(have, slices.Sorted(slices.Values(want))) {
				t.Errorf("%s %s: the document has the parameters %v, the table %v", method, rt.path, have, want)
			}
		}
	}
	for path, item := range doc.Paths {
		target := strings.NewReplacer("{", "", "}", "").Replace(path)
		for _, method := range []string{"get", "put", "post", "delete", "patch"} {
			if path == profilePath && method != "get" {
				continue // it is switched off, for any method
			}
			// A parameter that there is not is refused before anything is done; where there are none, GET does no harm.
			resp, body := r.do(strings.ToUpper(method), target+"?no-such-parameter=1", "", "")
			_, said := item[method]
			none := resp.StatusCode == 405 || resp.StatusCode == 404 && strings.Contains(body, "no such path")
			if none == said {
				t.Errorf("%s %s: %d %s; in the document: %v", method, path, resp.StatusCode, body, said)
			}
		}
	}
}

// A type that the document cannot describe is found when it is made, not by who asks for it.
func TestSchemas(t *testing.T) {
	type inner struct {
		A int `json:"a"`
	}
	type outer struct {
		inner
		B    *string           `json:"b,omitempty"`
		C    []inner           `json:"c"`
		D    map[string]uint16 `json:"d,omitzero"`
		E    [2]bool           `json:"e"`
		Skip int               `json:"-"`
		skip int
	}
	b := &schemas{names: map[reflect.Type]string{}, made: object{}}
	_ = outer{}.skip
	b.of(reflect.TypeFor[outer]())
	got, _ := json.Marshal(b.made["outer"])
	want := `{"properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{"items":{"$ref":"#/components/schemas/inner"},"type":"array"},` +
		`"d":{"additionalProperties":{"minimum":0,"type":"integer"},"type":"object"},"e":{"items":{"type":"boolean"},"maxItems":2,"minItems":2,"type":"array"}},"required":["a","c","e"],"type":"object"}`
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
