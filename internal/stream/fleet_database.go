package stream

import (
	"context"
	_ "embed"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"
)

//go:embed adopt.lua
var adoptSource string

var adoptScript = redis.NewScript(adoptSource)

// FleetDatabase is the record in Redis of the database that the fleet works with.
type FleetDatabase struct {
	ID      string // "" if no instance has joined
	Address string
	record  string
}

// NewFleetDatabase returns the record of a database.
func NewFleetDatabase(id, address string) FleetDatabase {
	return FleetDatabase{ID: id, Address: address, record: id + " " + address}
}

// FleetDatabase reads the record.
func (g *Group) FleetDatabase(ctx context.Context) (d FleetDatabase, err error) {
	d.record, err = g.client.Get(ctx, g.names.Database()).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return d, failure("ask which database the fleet works with", err)
	}
	d.ID, d.Address, _ = strings.Cut(d.record, " ")
	return d, nil
}

// Adopt replaces the record and voids the tokens of owners, so that nothing that was
// committed to the database before is acknowledged from then on. It reports false,
// and changes nothing, if the record is not what it was.
func (g *Group) Adopt(ctx context.Context, was, d FleetDatabase) (bool, error) {
	n, err := adoptScript.Run(ctx, g.client, []string{g.names.Database(), g.names.OwnerTokens()}, was.record, d.record).Int()
	return n == 1, failure("replace the fleet's database", err)
}
