package modules

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"github.com/trmtracking/processor/internal/config"
)

var isoUTC = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$`)

func TestLogLinesAreJSONWithBaseFields(t *testing.T) {
	var out bytes.Buffer
	NewLogger(config.Log{Format: "auto"}, "alpha", &out).Info("ready", "count", 3)
	var line map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &line))
	require.Regexp(t, isoUTC, line["time"])
	delete(line, "time")
	require.Equal(t, map[string]any{"level": "INFO", "msg": "ready", "service": "processor", "instance_id": "alpha", "count": 3.0}, line)
}

func TestLogFormatAndLevelAreObeyed(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(config.Log{Format: "text", Level: slog.LevelWarn}, "alpha", &out)
	log.Info("not this")
	log.Warn("this")
	require.NotContains(t, out.String(), "not this")
	require.Contains(t, out.String(), "level=WARN msg=this service=processor instance_id=alpha")
}

func TestAFileIsNoTerminal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "log")
	require.NoError(t, err)
	defer f.Close()
	NewLogger(config.Log{Format: "auto"}, "alpha", f).Info("ready")
	text, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.True(t, json.Valid(text), "%s", text)
}

func TestOwnFieldsCalledTimeStayAsTheyAre(t *testing.T) {
	var out bytes.Buffer
	NewLogger(config.Log{Format: "json"}, "alpha", &out).Info("x", slog.Group("g", slog.String("time", "noon")))
	require.Contains(t, out.String(), `"g":{"time":"noon"}`)
}

func TestFxEventsAndErrorsAreDebug(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(config.Log{Format: "text", Level: slog.LevelInfo}, "alpha", &out)
	app := fx.New(fx.Supply(log, newStarter(config.Config{}, log)), withLogger(), fx.Invoke(func(lc fx.Lifecycle) {
		lc.Append(fx.Hook{OnStart: func(context.Context) error { return errors.New("start failed") }})
	}))
	require.NoError(t, app.Err())
	require.NotContains(t, out.String(), "component=fx", "quiet at info")
	require.Error(t, app.Start(t.Context()))
	require.Empty(t, out.String(), "the caller of Start reports the failure")

	debug := NewLogger(config.Log{Format: "text", Level: slog.LevelDebug}, "alpha", &out)
	require.NoError(t, fx.New(fx.Supply(debug, newStarter(config.Config{}, debug)), withLogger()).Err())
	require.Contains(t, out.String(), "level=DEBUG")
}
