package control

import (
	"context"
	"encoding"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/vmnetd/vmnetd/impair"
	"github.com/vmnetd/vmnetd/portforward"
)

// The API's description in OpenAPI 3.1, made of the routes and of Go's types when somebody asks: there is nothing to keep in
// step. Tests hold the answers of a running server against it.

const openAPIPath = "/v1/openapi"

func (s *Server) openAPIRoutes() []route {
	return []route{
		{path: openAPIPath + ".json", on: verbs{"GET": {do: s.openAPIJSON, says: "Describes the API, as OpenAPI 3.1", gives: map[string]any{}, whole: true}}},
		{path: openAPIPath + ".yaml", on: verbs{"GET": {do: s.openAPIYAML, says: "Describes the API, as OpenAPI 3.1 in YAML", as: "application/yaml", whole: true}}},
	}
}

func (s *Server) openAPIJSON(*call) (reply, error) { return reply{http.StatusOK, s.openAPI()}, nil }

func (s *Server) openAPIYAML(*call) (reply, error) {
	b, err := json.Marshal(s.openAPI())
	if err == nil {
		b, err = yaml.JSONToYAML(b)
	}
	return reply{http.StatusOK, download{"application/yaml", func(_ context.Context, w http.ResponseWriter) { w.Write(b) }}}, err
}

// object is one of JSON's.
type object = map[string]any

// openAPIDocument has the order in which people read one.
type openAPIDocument struct {
	OpenAPI    string   `json:"openapi"`
	Info       object   `json:"info"`
	Servers    []object `json:"servers"`
	Security   []object `json:"security"`
	Paths      object   `json:"paths"`
	Components object   `json:"components"`
}

const openAPISays = `Looks into a running daemon and changes it.

It answers at a unix socket, whose mode says who may, and with ` + "`serve --api`" + ` at a TCP port of the loopback, to
whoever has the token.

Every path takes ` + "`?network=NAME`" + `. A daemon with one network needs none; one with several shows the lists of all
without it, each entry with its "network", and refuses with 409 what must be one network's. A parameter or a field that
it does not know is refused.

Every error is a problem (RFC 9457): what is wrong, where, and what would be right. HEAD and OPTIONS go with every path.`

func (s *Server) openAPI() openAPIDocument {
	d, _ := s.describe()
	return d
}

// describe makes the document, and says what it cannot tell.
func (s *Server) describe() (openAPIDocument, []string) {
	b := &schemas{names: map[reflect.Type]string{}, made: object{}}
	b.of(reflect.TypeFor[Problem]())
	d := openAPIDocument{
		OpenAPI: "3.1.0",
		Info: object{"title": "vmnetd", "version": s.Version, "summary": "User-mode networking for virtual machines", "description": openAPISays,
			"license": object{"name": "see LICENSE"}},
		Servers: []object{
			{"url": "http://vmnetd", "description": "At the control socket, where the host's name means nothing: curl --unix-socket $XDG_RUNTIME_DIR/vmnetd/control.sock"},
			{"url": "http://127.0.0.1:{port}", "description": "At serve --api, with the token", "variables": object{"port": object{"default": "8080"}}},
		},
		Security: []object{{}, {"token": []string{}}}, // none at the socket
		Paths:    object{},
	}
	for _, rt := range s.routes() {
		item := object{}
		if rt.id != "" {
			_, name, _ := strings.Cut(rt.path, "{")
			name, _, _ = strings.Cut(name, "}")
			item["parameters"] = []object{{"name": name, "in": "path", "required": true, "description": rt.id, "schema": object{"type": "string"}}}
		}
		for method, op := range rt.on {
			item[strings.ToLower(method)] = b.operation(rt, method, op)
		}
		d.Paths[rt.path] = item
	}
	text := func(id, tag, says, typ string) object {
		return object{"get": object{"operationId": id, "tags": []string{tag}, "summary": says, "responses": object{
			"200": object{"description": "As said.", "content": object{typ: object{"schema": object{"type": "string"}}}}, "default": problemResponse}}}
	}
	for _, path := range metricsPaths {
		d.Paths[path] = text(operationID("GET", path), "metrics", "Shows counters and gauges of all networks for Prometheus; or in OpenMetrics' format, for who accepts it", "text/plain")
	}
	d.Paths[profilePath] = text("getProfiles", "debug", "Lists Go's profiles of the process, if they are switched on (serve --pprof)", "text/html")
	d.Components = object{"schemas": b.made, "securitySchemes": object{
		"token": object{"type": "http", "scheme": "bearer", "description": "Of TCP ports. Browsers open /login?token=TOKEN instead, which sets a cookie."}}}
	return d, b.odd
}

var problemResponse = object{"description": "It was not done.", "content": object{"application/problem+json": object{"schema": object{"$ref": "#/components/schemas/Problem"}}}}

func (b *schemas) operation(rt route, method string, op operation) object {
	var params []object
	for _, p := range op.params() {
		params = append(params, object{"name": p.name, "in": "query", "description": sentence(p.says), "schema": p.schema()})
	}
	if rt.tag != nil && method != http.MethodGet {
		params = append(params,
			object{"name": "If-Match", "in": "header", "description": "Do it only while the ETag is this one; else 412.", "schema": object{"type": "string"}})
	}
	if rt.tag != nil && method == http.MethodPut {
		params = append(params,
			object{"name": "If-None-Match", "in": "header", "description": "With *: do it only if there is none yet; else 412.", "schema": object{"type": "string"}})
	}
	code, done := op.success(), object{"description": "Done."}
	content := object{}
	headers := object{}
	if op.gives != nil {
		content["application/json"] = object{"schema": b.of(reflect.TypeOf(op.gives))}
	}
	if op.as != "" {
		content[op.as] = object{"schema": object{"type": "string", "format": "binary"}}
	}
	if op.streams != nil {
		content[eventStream] = object{"schema": object{"type": "string",
			"description": "Server-sent events as they happen, for who accepts only those. The data of each is one of " + b.ref(reflect.TypeOf(op.streams)) + "."}}
	}
	if op.pages != nil {
		headers["Link"] = object{"description": "Leads to the next page, if limit is given and there is more (RFC 8288).", "schema": object{"type": "string"}}
	}
	if rt.tag != nil && code != http.StatusNoContent && (method == http.MethodGet || method == http.MethodPut) {
		headers["ETag"] = object{"description": "Of what can be set, not of counters: for If-Match.", "schema": object{"type": "string"}}
	}
	if len(content) > 0 {
		done["content"] = content
	}
	if len(headers) > 0 {
		done["headers"] = headers
	}
	responses := object{strconv.Itoa(code): done, "default": problemResponse}
	if op.also != 0 {
		responses[strconv.Itoa(op.also)] = done
	}
	o := object{
		"operationId": operationID(method, rt.path),
		"tags":        []string{strings.Split(rt.path, "/")[2]},
		"summary":     op.says,
		"parameters":  params,
		"responses":   responses,
	}
	if op.takes != nil {
		o["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": b.of(reflect.TypeOf(op.takes))}}}
	}
	return o
}

// success is the status code when all is well.
func (op operation) success() int {
	switch {
	case op.code != 0:
		return op.code
	case op.gives == nil && op.as == "":
		return http.StatusNoContent
	}
	return http.StatusOK
}

// operationID makes getGuestsGuest of GET /v1/guests/{guest}.
func operationID(method, path string) string {
	id := strings.ToLower(method)
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return strings.ContainsRune("/{}.-_", r) }) {
		id += strings.ToUpper(part[:1]) + part[1:]
	}
	return id
}

func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] + "." }

func (p param) schema() object {
	switch p.is.(type) {
	case int:
		o := object{"type": "integer", "minimum": p.least}
		if p.most > 0 {
			o["maximum"] = p.most
		}
		return o
	case bool:
		return object{"type": "boolean"}
	}
	if p.one != nil {
		return object{"type": "string", "enum": p.one}
	}
	return object{"type": "string"}
}

// schemas makes JSON schemas of Go's types, as encoding/json writes them.
type schemas struct {
	names map[reflect.Type]string
	made  object   // by their names
	odd   []string // what it cannot tell: TestOpenAPI looks
}

// schemaOf are types that encode themselves as something else than a text.
var schemaOf = map[reflect.Type]object{
	reflect.TypeFor[time.Time]():       {"type": "string", "format": "date-time"},
	reflect.TypeFor[json.RawMessage](): {},
	reflect.TypeFor[portforward.Rule](): {"type": "object", "required": []string{"proto", "guest_port"}, "properties": object{
		"proto":      object{"type": "string", "enum": []string{"tcp", "udp", "unix"}},
		"host":       object{"type": "string", "description": "The host's address; 127.0.0.1 if absent."},
		"host_port":  object{"type": "integer", "minimum": 0, "maximum": 65535},
		"path":       object{"type": "string", "description": "Of unix: the socket's file."},
		"count":      object{"type": "integer", "description": "How many ports in a row."},
		"guest":      object{"type": "string", "description": "Its address, name or MAC; the network's first address if absent."},
		"guest_port": object{"type": "integer", "minimum": 1, "maximum": 65535},
		"source":     object{"type": "string", "enum": []string{"gateway", "client"}, "description": "Whom the guest sees."}}},
	reflect.TypeFor[impair.Settings](): {"anyOf": []object{
		{"type": "string", "description": "A preset's name."},
		{"type": "object", "properties": object{"up": wayOfLine, "down": wayOfLine, "seed": object{"type": "integer", "minimum": 0},
			"flows": object{"type": "array", "items": object{"type": "object", "properties": object{
				"name": object{"type": "string"}, "match": object{"type": "string"}, "up": wayOfLine, "down": wayOfLine}}}}}}},
}

var wayOfLine = object{"type": "object", "description": "One way of a line, as {\"rate\":\"10mbit\",\"latency\":\"50ms\",\"loss\":\"1%\"}."}

var (
	marshaler     = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	durationType  = reflect.TypeFor[time.Duration]()
)

// ref is where a type's schema is.
func (b *schemas) ref(t reflect.Type) string {
	if ref, ok := b.of(t)["$ref"].(string); ok {
		return ref
	}
	return t.String()
}

func (b *schemas) of(t reflect.Type) object {
	said, own := schemaOf[t]
	switch {
	case own && t.PkgPath() != "encoding/json" && t.PkgPath() != "time": // ours have names in the document, too
	case own:
		return said
	case t == durationType:
		return object{"type": "integer", "description": "Nanoseconds."}
	case t.Implements(marshaler):
		b.odd = append(b.odd, fmt.Sprintf("%s encodes itself: say how in schemaOf (openapi.go)", t))
		return object{}
	case t.Implements(textMarshaler), t.Kind() != reflect.Pointer && reflect.PointerTo(t).Implements(textMarshaler):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return b.of(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Interface:
		return object{}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentEncoding": "base64"}
		}
		return object{"type": "array", "items": b.of(t.Elem())}
	case reflect.Array:
		return object{"type": "array", "items": b.of(t.Elem()), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": b.of(t.Elem())}
	case reflect.Struct:
		if t.Name() == "" {
			return b.fields(t)
		}
		name := b.name(t)
		if b.made[name] == nil {
			b.made[name] = object{} // it may have itself inside
			if own {
				b.made[name] = said
			} else {
				b.made[name] = b.fields(t)
			}
		}
		return object{"$ref": "#/components/schemas/" + name}
	}
	b.odd = append(b.odd, fmt.Sprintf("%s is nothing that JSON has", t))
	return object{}
}

// name is a type's own, with its package's before it where another one has that already.
func (b *schemas) name(t reflect.Type) string {
	if n, ok := b.names[t]; ok {
		return n
	}
	n := t.Name()
	for other, taken := range b.names {
		if taken == n && other != t {
			pkg := t.PkgPath()[strings.LastIndexByte(t.PkgPath(), '/')+1:]
			n = strings.ToUpper(pkg[:1]) + pkg[1:] + n
			break
		}
	}
	b.names[t] = n
	return n
}

func (b *schemas) fields(t reflect.Type) object {
	props, required := object{}, []string{}
	var add func(t reflect.Type)
	add = func(t reflect.Type) {
		for _, f := range reflect.VisibleFields(t) {
			tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if len(f.Index) > 1 || tag == "-" || !f.IsExported() && !f.Anonymous {
				continue
			}
			if f.Anonymous && tag == "" {
				e := f.Type
				if e.Kind() == reflect.Pointer {
					e = e.Elem()
				}
				add(e)
				continue
			}
			if tag == "" {
				tag = f.Name
			}
			props[tag] = b.of(f.Type)
			if !strings.Contains(options, "omit") {
				required = append(required, tag)
			}
		}
	}
	add(t)
	o := object{"type": "object", "properties": props}
	if len(required) > 0 {
		slices.Sort(required)
		o["required"] = required
	}
	return o
}
