package fencefile

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/peterstace/simplefeatures/geom"
)

// columns are what programs call the column of a table that holds WKT.
var columns = []string{"wkt", "geometry", "geom", "the_geom"}

// wktBegins is how a geometry begins.
var wktBegins = regexp.MustCompile(`(?i)^(SRID=\d+;)?\s*(POINT|LINESTRING|POLYGON|MULTI|GEOMETRYCOLLECTION)`)

// fromText reads WKT, or a table with a column of it whose other columns are
// properties.
func fromText(text []byte, name string) ([]feature, error) {
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if !wktBegins.Match(text) {
		for _, comma := range []rune{',', ';', '\t'} {
			r := csv.NewReader(bytes.NewReader(first))
			r.Comma = comma
			header, err := r.Read()
			if err != nil {
				continue
			}
			column := slices.IndexFunc(header, func(h string) bool {
				return slices.Contains(columns, strings.ToLower(strings.TrimSpace(h)))
			})
			if column >= 0 {
				return fromTable(text, comma, column)
			}
		}
		return nil, fmt.Errorf("is neither GeoJSON, KML, GPX, WKT nor a table with a column %s", strings.Join(columns, ", "))
	}
	var list []feature
	for _, one := range statements(string(text)) {
		id := name
		if len(list) > 0 {
			id = fmt.Sprintf("%s-%d", name, len(list)+1)
		}
		f := newFeature(map[string]any{"id": id}, nil)
		f.draw(one)
		list = append(list, f)
	}
	return list, nil
}

// statements splits a text where parentheses are balanced.
func statements(text string) []string {
	var list []string
	depth, from := 0, 0
	for i, c := range text {
		switch c {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				list, from = append(list, strings.Trim(text[from:i+1], "; \t\r\n")), i+1
			}
		}
	}
	if rest := strings.Trim(text[from:], "; \t\r\n"); rest != "" {
		list = append(list, rest)
	}
	return list
}

func fromTable(text []byte, comma rune, column int) ([]feature, error) {
	r := csv.NewReader(bytes.NewReader(text))
	r.Comma = comma
	rows, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	var list []feature
	for _, row := range rows[1:] {
		f := newFeature(map[string]any{}, nil)
		for i, text := range row {
			key := strings.ToLower(strings.TrimSpace(rows[0][i]))
			switch {
			case i == column:
				f.draw(text)
			case strings.TrimSpace(text) != "":
				f.Properties[key] = value(key, text)
			}
		}
		list = append(list, f)
	}
	return list, nil
}

// draw gives the feature the geometry of a text, if it has one.
func (f *feature) draw(text string) {
	if text = strings.TrimSpace(text); text == "" {
		return
	}
	g, err := fromWKT(text)
	if err != nil {
		f.Unreadable = err.Error()
		return
	}
	f.Geometry = g
}

func fromWKT(text string) (any, error) {
	if srid, rest, ok := strings.Cut(text, ";"); ok && strings.HasPrefix(strings.ToUpper(srid), "SRID=") {
		if srid[len("SRID="):] != "4326" {
			return nil, fmt.Errorf("%s is not WGS84: export the fences as EPSG:4326", srid)
		}
		text = rest
	}
	g, err := geom.UnmarshalWKT(text, geom.NoValidate{})
	if err != nil {
		return nil, fmt.Errorf("read WKT: %w", err)
	}
	return g.Force2D(), nil
}
