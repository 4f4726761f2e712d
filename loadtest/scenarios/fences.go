package scenarios

import (
	"context"
	"fmt"
	"math"

	"github.com/trmtracking/processor/internal/geofence"
	"github.com/trmtracking/processor/loadtest/fleet"
	"github.com/trmtracking/processor/loadtest/oracle"
)

const (
	fencePlaces = 36
	fenceSizeM  = 200.0
)

// fencesAlong puts fences where a fleet drives: circles, areas and gates by
// turns. They depend on the profile only.
func fencesAlong(p fleet.Profile) ([]geofence.Fence, error) {
	p.Limit = 20 * fencePlaces
	source, err := p.Source()
	if err != nil {
		return nil, err
	}
	var places []fleet.Item
	for it, ok := source.Next(); ok; it, ok = source.Next() {
		if it.Junk == nil && (it.Message.Latitude != 0 || it.Message.Longitude != 0) {
			places = append(places, it)
		}
	}
	var fences []geofence.Fence
	for n := range min(fencePlaces, len(places)) {
		m := places[n*len(places)/fencePlaces].Message
		f := geofence.Fence{ID: fmt.Sprintf("place-%02d", n+1), Valid: geofence.Always, Enabled: true}
		f.Name = f.ID
		dLat := fenceSizeM / 111_195
		dLon := dLat / math.Cos(m.Latitude*math.Pi/180)
		switch n % 3 {
		case 0:
			f.Kind, f.RadiusM = geofence.Circle, fenceSizeM
			f.Geometry = fmt.Sprintf(`{"type":"Point","coordinates":[%.7f,%.7f]}`, m.Longitude, m.Latitude)
		case 1:
			f.Kind = geofence.Area
			w, e, s, n := m.Longitude-dLon, m.Longitude+dLon, m.Latitude-dLat, m.Latitude+dLat
			f.Geometry = fmt.Sprintf(`{"type":"Polygon","coordinates":[[[%.7f,%.7f],[%.7f,%.7f],[%.7f,%.7f],[%.7f,%.7f],[%.7f,%.7f]]]}`,
				w, s, e, s, e, n, w, n, w, s)
		default:
			f.Kind = geofence.Gate
			f.Geometry = fmt.Sprintf(`{"type":"LineString","coordinates":[[%.7f,%.7f],[%.7f,%.7f]]}`,
				m.Longitude-dLon, m.Latitude-dLat, m.Longitude+dLon, m.Latitude+dLat)
		}
		fences = append(fences, f)
	}
	return fences, nil
}

// fence puts up the fences of a run, before anything is stored.
func (r *run) fence(ctx context.Context) error {
	profile, err := r.plan.Fleet(r.cfg.Seed, 0, endless)
	if err != nil {
		return err
	}
	if r.fences, err = fencesAlong(profile); err != nil {
		return err
	}
	if _, err := r.environment.Fences.Import(ctx, r.fences, "import", true); err != nil {
		return fmt.Errorf("put up fences: %w", err)
	}
	return nil
}

// rules returns what crossings follow from, with the service's defaults.
func (r *run) rules() oracle.Rules {
	fences := make([]oracle.Fence, len(r.fences))
	for i, f := range r.fences {
		fences[i] = oracle.Fence{
			ID: f.ID, Version: 1, Kind: string(f.Kind), Geometry: f.Geometry, RadiusM: f.RadiusM, WidthM: f.WidthM,
			ExitMarginM: f.ExitMarginM, MinDwellS: f.MinDwellS, MinIntervalS: f.MinIntervalS,
			FromUS: f.Valid.FromUS, ToUS: f.Valid.ToUS, Disabled: !f.Enabled,
		}
	}
	return oracle.Rules{Fences: fences, Limits: oracle.Limits{MaxFutureSkew: maxFutureSkew, MinSatellites: minSatellites, MaxCrossingGap: maxCrossingGap}}
}
