package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/internal/protocol"
)

// FenceQuery copies the fences that a platform keeps in its own tables, in the
// same database, under the leader's term.
type FenceQuery struct {
	pool    *pgxpool.Pool
	editor  *FenceEditor // records the leading member as the author
	query   string
	timeout time.Duration
}

// NewFenceQuery returns the fences of a select statement. Its columns are id
// and geometry (GeoJSON, as text or json, WGS84) and optionally name, kind,
// radius_m, width_m, exit_margin_m, min_dwell_s, min_interval_s, valid_from, valid_to
// (timestamptz) and enabled.
func NewFenceQuery(pool *pgxpool.Pool, editor *FenceEditor, query string, timeout time.Duration) *FenceQuery {
	return &FenceQuery{pool: pool, editor: editor, query: strings.TrimRight(query, "; \t\r\n"), timeout: timeout}
}

// platformFence is a row of the query.
type platformFence struct {
	ID       *json.RawMessage `json:"id"`
	Name     *string          `json:"name"`
	Kind     *string          `json:"kind"`
	Geometry json.RawMessage  `json:"geometry"`
	RadiusM  *json.RawMessage `json:"radius_m"`
	WidthM   *json.RawMessage `json:"width_m"`

	ExitMarginM  *json.RawMessage `json:"exit_margin_m"`
	MinDwellS    *json.RawMessage `json:"min_dwell_s"`
	MinIntervalS *json.RawMessage `json:"min_interval_s"`

	ValidFrom *string `json:"valid_from"`
	ValidTo   *string `json:"valid_to"`
	Enabled   *bool   `json:"enabled"`
}

// Renew reads the platform's fences and makes them the current ones of the
// source query. Invalid rows are skipped and reported; a fence that one of them
// belongs to stays unchanged, since a mistake in the platform must not withdraw
// recorded crossings. A leader of an earlier term is rejected.
func (q *FenceQuery) Renew(ctx context.Context, term int64) (protocol.FenceSyncResult, error) {
	var out protocol.FenceSyncResult
	rows, err := q.rows(ctx)
	if err != nil {
		return out, q.late(ctx, failure("read the platform's fences", err))
	}
	fences, keep, bad := fencesOf(rows)
	writing, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	// While an invalid row cannot be attributed to a fence, no fence is closed.
	edited, err := q.editor.change(writing, fences, keep, "query", !slices.Contains(keep, ""), term, q.confirmed)
	if err != nil {
		return out, q.late(ctx, err)
	}
	out.Added, out.Closed, out.Bad = edited.Added, edited.Closed, append(bad, edited.Refused...)
	return out, nil
}

// late says what ends an error for lack of time.
func (q *FenceQuery) late(ctx context.Context, err error) error {
	f, ok := errors.AsType[*protocol.Failure](err)
	if ctx.Err() != nil || !ok || f.Code != "57014" && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w; neither the query nor the change of fences may take longer than STATEMENT_TIMEOUT=%v: make it faster, or raise that", err, q.timeout)
}

// confirmed refuses a query that yields none of the fences or less than half,
// which is how a platform's mistake looks, until an operator has confirmed
// exactly that number. A confirmation holds until fences change.
func (q *FenceQuery) confirmed(ctx context.Context, tx pgx.Tx, c fenceCount) error {
	if c.removed == 0 || 2*c.given >= c.present {
		return nil
	}
	var confirmed bool
	if err := tx.QueryRow(ctx, `
select coalesce((
    select action = $1 and count = $3
    from processor.audit
    where action = $1 and target = $2
      or action = 'fences'
    order by id desc
    limit 1
  ), false)`, confirmAction, q.editor.scope.Stream+"/"+q.editor.scope.Group, c.given).Scan(&confirmed); err != nil || confirmed {
		return err
	}
	return fmt.Errorf("the query yields %d of %d fences, so nothing was changed: correct the platform, or run processor geofence confirm %d",
		c.given, c.present, c.given)
}

// confirmAction is what the audit calls a confirmation. It is the only record of
// it: the service may not write settings, nor an operator take one back unseen.
const confirmAction = "fences confirm"

// Confirm lets the platform's query leave this many fences, once.
func (e *FenceEditor) Confirm(ctx context.Context, fences int) error {
	_, err := e.pool.Exec(ctx, `
insert into processor.audit (who, action, target, count)
values ($1, $2, $3, $4)`, e.by, confirmAction, e.scope.Stream+"/"+e.scope.Group, fences)
	return failure("confirm fences", err)
}

// rows runs the query in a read-only transaction.
func (q *FenceQuery) rows(ctx context.Context) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, q.timeout)
	defer cancel()
	var list [][]byte
	err := pgx.BeginTxFunc(ctx, q.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "select row_to_json(q)::text from (\n"+q.query+"\n) as q")
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
		return err
	})
	return list, err
}

// fencesOf parses rows one by one. keep has the IDs of invalid ones, "" for one
// without ID.
func fencesOf(rows [][]byte) (fences []geofence.Fence, keep []string, bad []error) {
	var numbers []int // by fence, its row
	for i, row := range rows {
		text, id, err := featureOf(row)
		if err == nil {
			var list []geofence.Fence
			var refused []*geofence.FenceError
			list, refused, err = geofence.ParseFeatures(text, geofence.Defaults{})
			if err == nil && len(refused) > 0 {
				err = refused[0].Err
			}
			if err == nil {
				fences, numbers = append(fences, list...), append(numbers, i)
			}
		}
		if err != nil {
			keep, bad = append(keep, id), append(bad, fmt.Errorf("row %d, fence %s: %w", i+1, cmp.Or(id, "without an id"), err))
		}
	}
	_, clash := geofence.NewSet(fences)
	drop := make(map[int]bool)
	for _, c := range clash {
		drop[c.Index] = true
		keep, bad = append(keep, c.ID), append(bad, fmt.Errorf("row %d, fence %s: %w", numbers[c.Index]+1, c.ID, c.Err))
	}
	good := fences[:0]
	for i := range fences {
		if !drop[i] {
			good = append(good, fences[i])
		}
	}
	return good, keep, bad
}

// featureOf makes a GeoJSON Feature of a row, and returns its ID if it has one.
func featureOf(row []byte) (feature []byte, id string, err error) {
	var p platformFence
	problem := json.Unmarshal(row, &p) // sets what it can
	if p.ID == nil {
		return nil, "", errors.New("id is null or there is no such column")
	}
	id = string(*p.ID) // a number as it is written
	if err := json.Unmarshal(*p.ID, &id); err != nil && strings.ContainsAny(id[:1], "{[tf") {
		return nil, "", errors.New("id is neither text nor a number")
	}
	if problem != nil {
		return nil, id, fmt.Errorf("a column has a type that cannot be used: %w", problem)
	}
	geometry := []byte(p.Geometry)
	var text string
	if json.Unmarshal(geometry, &text) == nil {
		geometry = []byte(text)
	}
	if len(geometry) == 0 || string(geometry) == "null" {
		return nil, id, errors.New("geometry is null or there is no such column")
	}
	if !json.Valid(geometry) {
		return nil, id, errors.New("geometry is not GeoJSON; select it with ST_AsGeoJSON")
	}
	properties := map[string]any{"id": id}
	if p.Name != nil {
		properties["name"] = *p.Name
	}
	if p.Kind != nil {
		properties["kind"] = *p.Kind
	}
	for name, v := range map[string]*json.RawMessage{
		"radius_m": p.RadiusM, "width_m": p.WidthM,
		"exit_margin_m": p.ExitMarginM, "min_dwell_s": p.MinDwellS, "min_interval_s": p.MinIntervalS,
	} {
		if v != nil {
			properties[name] = *v
		}
	}
	if p.Enabled != nil {
		properties["enabled"] = *p.Enabled
	}
	for _, end := range []struct {
		name, open string
		at         *string
	}{{"valid_from", "-infinity", p.ValidFrom}, {"valid_to", "infinity", p.ValidTo}} {
		if end.at == nil || *end.at == end.open {
			continue
		}
		if strings.HasSuffix(*end.at, "infinity") {
			return nil, id, fmt.Errorf("%s is %s, so it is never valid: leave out the row, or write %s or null for an open end", end.name, *end.at, end.open)
		}
		if _, err := time.Parse(time.RFC3339Nano, *end.at); err != nil {
			return nil, id, fmt.Errorf("%s is %q, want a timestamptz", end.name, *end.at)
		}
		properties[end.name] = *end.at
	}
	feature, err = json.Marshal(map[string]any{"type": "Feature", "properties": properties, "geometry": json.RawMessage(geometry)})
	return feature, id, err
}
