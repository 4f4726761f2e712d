package schema

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// catalog is what Verify compares: the part of a database's catalogue that
// belongs to the processor.
type catalog struct {
	Tables    map[string]table    `json:"tables"`
	Functions map[string]function `json:"functions"` // by name and argument types
}

// table is a table, or a view, by its qualified name.
type table struct {
	View    bool              `json:"view,omitempty"`
	Logged  bool              `json:"logged"` // with all its partitions or chunks
	Columns map[string]column `json:"columns"`
	// Indexes are valid indexes, described without their names: two that do the
	// same are equal, even if one of them is a primary key.
	Indexes []string `json:"indexes"`
	// Triggers are enabled triggers, described in full.
	Triggers []string `json:"triggers,omitempty"`
}

// kind returns what it is, in one word.
func (t table) kind() string {
	if t.View {
		return "view"
	}
	return "table"
}

// column is one column of a table.
type column struct {
	Type    string `json:"type"`
	NotNull bool   `json:"not_null"`
	// Filled is where a value comes from if an insert gives none: default (of a
	// boolean with its value, which decides), identity, generated, or nowhere.
	Filled string `json:"filled,omitempty"`
}

// String returns the column as create table would spell it.
func (c column) String() string {
	s := c.Type
	if c.NotNull {
		s += " not null"
	} else {
		s += " null"
	}
	switch c.Filled {
	case "":
		return s
	case "default":
		return s + " with a default"
	}
	return s + " " + c.Filled
}

// function is one function.
type function struct {
	Returns string `json:"returns"`
	Body    string `json:"body"` // a hash that ignores white space
}

// neededJSON is the catalogue of a database that has just been migrated.
//
//go:generate go test -count=1 -run Catalog . -update-catalog
//go:embed catalog.json
var neededJSON []byte

// neededCatalog returns what this binary needs.
func neededCatalog() (catalog, error) {
	var c catalog
	if err := json.Unmarshal(neededJSON, &c); err != nil {
		return catalog{}, fmt.Errorf("read the embedded catalogue: %w", err)
	}
	return c, nil
}

const (
	// With nothing else on the path, all names are printed qualified.
	catalogPathSQL = `set local search_path = pg_catalog`

	tablesSQL = `
with recursive unlogged as (
  select c.oid
  from pg_class c
  where c.relpersistence = 'u'
    and c.relkind in ('r', 'p')
  union
  select i.inhparent
  from unlogged u
  join pg_inherits i on i.inhrelid = u.oid
)
select c.oid, format('%s.%s', n.nspname, c.relname), c.relkind = 'v', not exists (select from unlogged u where u.oid = c.oid)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v')
  and (n.nspname = 'processor' or (n.nspname = 'public' and c.relname = 'positions'))
  and format('%s.%s', n.nspname, c.relname) <> '` + versionTable + `'`

	columnsSQL = `
select a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
  case
    when a.attgenerated <> '' then 'generated'
    when a.attidentity <> '' then 'identity'
    when pg_get_expr(d.adbin, d.adrelid) in ('false', 'true') then 'default ' || pg_get_expr(d.adbin, d.adrelid)
    when a.atthasdef then 'default'
    else ''
  end
from pg_attribute a
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = any ($1)
  and a.attnum > 0
  and not a.attisdropped`

	indexesSQL = `
select i.indrelid,
  case when i.indisunique and i.indimmediate then 'unique ' else '' end
  || am.amname
  || ' (' || keys.list || ')'
  || coalesce(' where ' || pg_get_expr(i.indpred, i.indrelid), '')
from pg_index i
join pg_class ic on ic.oid = i.indexrelid
join pg_am am on am.oid = ic.relam
cross join lateral (
  select string_agg(
    pg_get_indexdef(i.indexrelid, k, true)
    || case when opc.opcdefault then '' else ' ' || opc.opcname end
    || case i.indoption[k - 1] & 3
         when 1 then ' desc nulls last'
         when 2 then ' nulls first'
         when 3 then ' desc'
         else ''
       end,
    ', ' order by k) as list
  from generate_series(1, i.indnkeyatts) k
  join pg_opclass opc on opc.oid = i.indclass[k - 1]
) keys
where i.indrelid = any ($1)
  and i.indisvalid
order by 1, 2`

	triggersSQL = `
select t.tgrelid, pg_get_triggerdef(t.oid)
from pg_trigger t
where t.tgrelid = any ($1)
  and not t.tgisinternal
  and t.tgenabled <> 'D'
  and t.tgname <> 'ts_insert_blocker' -- of each hypertable, before TimescaleDB 2.23
order by 1, 2`

	functionsSQL = `
select format('%s.%s(%s)', n.nspname, p.proname, oidvectortypes(p.proargtypes)),
  format_type(p.prorettype, null),
  md5(btrim(regexp_replace(p.prosrc, '\s+', ' ', 'g'))), p.oid
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'processor'`
)

// readCatalog reads the live catalogue inside tx, whose search path it
// changes.
func readCatalog(ctx context.Context, tx pgx.Tx) (catalog, error) {
	c := catalog{Tables: map[string]table{}, Functions: map[string]function{}}
	if _, err := tx.Exec(ctx, catalogPathSQL); err != nil {
		return c, catalogueFailed(err)
	}

	names := map[uint32]string{}
	oids := []uint32{}
	var oid uint32
	var name, text string
	var view, logged bool
	err := forEach(ctx, tx, tablesSQL, nil, []any{&oid, &name, &view, &logged}, func() {
		names[oid] = name
		oids = append(oids, oid)
		c.Tables[name] = table{View: view, Logged: logged, Columns: map[string]column{}, Indexes: []string{}}
	})
	if err != nil {
		return c, err
	}

	var col column
	err = forEach(ctx, tx, columnsSQL, oids,
		[]any{&oid, &name, &col.Type, &col.NotNull, &col.Filled}, func() {
			c.Tables[names[oid]].Columns[name] = col
		})
	if err != nil {
		return c, err
	}

	err = forEach(ctx, tx, indexesSQL, oids, []any{&oid, &text}, func() {
		t := c.Tables[names[oid]]
		t.Indexes = append(t.Indexes, text)
		c.Tables[names[oid]] = t
	})
	if err != nil {
		return c, err
	}

	err = forEach(ctx, tx, triggersSQL, oids, []any{&oid, &text}, func() {
		t := c.Tables[names[oid]]
		t.Triggers = append(t.Triggers, text)
		c.Tables[names[oid]] = t
	})
	if err != nil {
		return c, err
	}

	var fn function
	return c, forEach(ctx, tx, functionsSQL, nil,
		[]any{&name, &fn.Returns, &fn.Body, nil}, func() {
			c.Functions[name] = fn
		})
}

func forEach(ctx context.Context, tx pgx.Tx, sql string, oids []uint32, scan []any, row func()) error {
	var args []any
	if oids != nil {
		args = []any{oids}
	}
	rows, err := tx.Query(ctx, sql, args...)
	if err == nil {
		_, err = pgx.ForEachRow(rows, scan, func() error { row(); return nil })
	}
	if err != nil {
		return catalogueFailed(err)
	}
	return nil
}
