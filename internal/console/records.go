package console

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
)

// shownRows is the number of rows of a page of a list.
const shownRows = 50

// incidentsData is what the page of incidents and the ledger shows.
type incidentsData struct {
	view
	Incidents reading[operator.Page[store.NumberedIncident]]
	Losses    reading[operator.Page[store.NumberedLoss]]
	OpenOnly  bool
}

// Guide returns what to do about an incident.
func (incidentsData) Guide(kind string) operator.Guide { return operator.GuideOf(kind) }

func number64(r *http.Request, name string) int64 {
	n, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
	if err != nil {
		return 0 // the first page
	}
	return n
}

func (c *Console) incidents(ctx context.Context, r *http.Request) (any, error) {
	d := incidentsData{view: c.view(ctx, slowest), OpenOnly: r.URL.Query().Get("open") != ""}
	before, lost := number64(r, "before"), number64(r, "lost")
	d.Incidents = c.incidentPages.get(fmt.Sprint(d.OpenOnly, before), 2*time.Second, askFor, func(ctx context.Context) (p operator.Page[store.NumberedIncident], err error) {
		err = c.with(func(f *operator.Fleet) error { p, err = f.Incidents(ctx, d.OpenOnly, before, shownRows); return err })
		return p, err
	}).get(ctx)
	d.Losses = c.lossPages.get(fmt.Sprint(lost), 2*time.Second, askFor, func(ctx context.Context) (p operator.Page[store.NumberedLoss], err error) {
		err = c.with(func(f *operator.Fleet) error { p, err = f.Losses(ctx, lost, shownRows); return err })
		return p, err
	}).get(ctx)
	return d, nil
}

// requestsData is what the page of requests and the audit shows.
type requestsData struct {
	view
	Requests reading[operator.Page[store.RequestStatus]]
	Audit    reading[operator.Page[store.AuditRow]]
}

func (c *Console) requests(ctx context.Context, r *http.Request) (any, error) {
	d := requestsData{view: c.view(ctx, slowest)}
	device, before, audited := r.URL.Query().Get("device"), number64(r, "before"), number64(r, "audit")
	d.Requests = c.requestPages.get(fmt.Sprint(before, device), 2*time.Second, askFor, func(ctx context.Context) (p operator.Page[store.RequestStatus], err error) {
		err = c.with(func(f *operator.Fleet) error { p, err = f.Requests(ctx, device, before, shownRows); return err })
		return p, err
	}).get(ctx)
	d.Audit = c.auditPages.get(fmt.Sprint(audited), 2*time.Second, askFor, func(ctx context.Context) (p operator.Page[store.AuditRow], err error) {
		err = c.with(func(f *operator.Fleet) error { p, err = f.Audit(ctx, audited, shownRows); return err })
		return p, err
	}).get(ctx)
	return d, nil
}

// settingsData is what the page of settings shows.
type settingsData struct {
	view
	Settings []Setting
	Pinned   reading[[]store.SettingRow]
}

func (c *Console) settings(ctx context.Context, _ *http.Request) (any, error) {
	return settingsData{view: c.view(ctx, slowest), Settings: c.cfg.Settings, Pinned: c.pinned.get(ctx)}, nil
}
