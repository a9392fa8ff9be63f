package dns

import (
	"fmt"
	"strings"

	wire "github.com/miekg/dns"
)

// Parse reads a record as Add takes it and returns it as List shows it, without adding it.
func (s *Server) Parse(record string) (Record, error) {
	rr, err := parseRecord(record, s.table.domain)
	if err != nil {
		return Record{}, err
	}
	h := rr.Header()
	return Record{Name: h.Name, Type: wire.Type(h.Rrtype).String(), Data: data(rr), TTL: h.Ttl, Source: SourceAdmin}, nil
}

// Split checks a record as Add takes it, "db A 10.0.2.20" or "db 60 IN A 10.0.2.20", and returns its parts as they are
// written: names may be relative to a domain. ttl is 0 if it has none.
func Split(record string) (r Record, err error) {
	rr, err := parseRecord(record, "internal.")
	if err != nil {
		return r, err
	}
	kind := wire.Type(rr.Header().Rrtype).String()
	fields := zoneFields(strings.Trim(record, " \t"))
	r = Record{Name: fields[0], Type: kind, Source: SourceAdmin}
	rest := strings.TrimPrefix(strings.TrimLeft(record, " \t"), fields[0])
	for i := 1; i < len(fields); i++ { // a TTL and a class stand before the type, in either order
		rest = strings.TrimPrefix(strings.TrimLeft(rest, " \t"), fields[i])
		if strings.EqualFold(fields[i], kind) {
			r.Data = strings.Trim(rest, " \t")
			// Brackets, comments and quotes around names could make other parts of it than a zone file's reader does.
			if same, err := parseRecord(r.Name+" "+r.Type+" "+r.Data, "internal."); err != nil || !wire.IsDuplicate(rr, same) {
				break
			}
			return r, nil
		}
		if !strings.EqualFold(fields[i], "IN") {
			r.TTL = rr.Header().Ttl
		}
	}
	return Record{}, fmt.Errorf("dns: record %.80q: want NAME TYPE VALUE, plainly: no brackets, no comments", record)
}
