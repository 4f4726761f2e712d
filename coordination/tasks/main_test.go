package tasks

import (
	"log/slog"
	"testing"

	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
