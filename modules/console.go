package modules

import (
	"context"
	"log/slog"
	"slices"

	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/console"
	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/httpserver"
	"github.com/trmtracking/processor/internal/operator"
)

// consoleSessions is how many sessions with Postgres all consoles of an instance have at most: a
// page of one stream needs three, and an action another one.
const consoleSessions = 4

// mountConsole serves the console, unless it is off. It has connections of its own,
// which it opens when a page is asked for: what people look at takes none from the
// work. Those with Postgres are of all streams together.
func mountConsole(lc fx.Lifecycle, cfg config.Config, b Build, m Member, server *httpserver.Server, log *slog.Logger) error {
	if cfg.Console.Mode == "off" {
		return nil
	}
	proxies, err := cfg.Console.Proxies.Prefixes()
	if err != nil {
		return fault.Coded(fault.Config, err)
	}
	var streams []console.Stream
	sessions := &operator.Sessions{Most: consoleSessions}
	for _, one := range cfg.PerStream() {
		streams = append(streams, console.Stream{Stream: one.Redis.Stream, Group: one.Redis.Group, Open: func() (*operator.Fleet, error) {
			return sessions.Fleet(context.Background(), one, "console", string(m)) // it lives until it is closed
		}})
	}
	c, err := console.New(console.Config{
		Version: b.Version, Member: string(m), Streams: streams, Tiles: cfg.Console.Tiles,
		Auth: console.Auth{
			Write: cfg.Console.Mode == "write", Token: cfg.Console.Token.Reveal(), Header: cfg.Console.UserHeader, Proxies: proxies,
			Secret: cfg.Postgres.URL.Reveal() + " " + cfg.Redis.URL.Reveal(),
		},
		Settings: settingsOf(cfg),
	}, log)
	if err != nil {
		return fault.Coded(fault.Config, err)
	}
	server.Mount(console.Root, c.Handler())
	lc.Append(fx.StopHook(c.Close))
	return nil
}

// settingsOf returns the configuration in effect, without secrets.
func settingsOf(cfg config.Config) []console.Setting {
	values := cfg.Settings()
	var list []console.Setting
	for _, v := range config.Variables() {
		i := slices.IndexFunc(values, func(s config.Setting) bool { return s.Name == v.Name })
		s := console.Setting{Name: v.Name, Value: values[i].Value, Default: v.Default, Help: v.Help}
		s.Changed = s.Value != s.Default
		list = append(list, s)
	}
	return list
}
