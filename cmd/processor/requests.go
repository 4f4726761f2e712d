package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/trmtracking/processor/internal/cli"
	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/operator"
	"github.com/trmtracking/processor/internal/store"
)

func newRequestsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "requests",
		Short: "List requests to rehydrate, recompute or erase",
		Long: `Lists the requests that are not over, and those that failed within the last day with
the reason: reloading, recomputing or erasing devices, by operators, changed fences
and other services. An attempt that fails is repeated up to eight times; outages do
not count.`,
		Example: `  processor requests
  processor requests --json
  processor requests cancel 4711`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadServers(os.Environ())
			if err != nil {
				return err
			}
			return listOfEach(cmd, cfg, func(f *operator.Fleet) (*[]store.RequestStatus, error) {
				list, err := f.OpenRequests(cmd.Context())
				if list == nil {
					list = []store.RequestStatus{}
				}
				return &list, err
			}, printRequests)
		},
	}, newCancelCommand())
}

func newCancelCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel a request",
		Long: `Cancels a request that is not over. It changes nothing from then on; what it changed
before stays. Exits 1 if it is over already.`,
		Example: `  processor requests cancel 4711
  processor requests cancel 4711 --reason "wrong window" --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usageError(cmd, fmt.Errorf("ID %q: want a number, see processor requests", args[0]))
			}
			f, err := openFleet(cmd)
			if err != nil {
				return err
			}
			defer f.Close()
			status, cancelled, err := f.Cancel(cmd.Context(), id, reason)
			if err != nil {
				return err
			}
			if err := printed(cmd, &status, printRequest); err != nil {
				return err
			}
			if !cancelled {
				return fmt.Errorf("request %d is %s already", id, status.State)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "reason, for the audit")
	return cmd
}

func printRequests(out *cli.Output, list *[]store.RequestStatus) error {
	if len(*list) == 0 {
		return out.Line("no request is open, and none failed within the last day")
	}
	t := cli.NewTable("ID", "KIND", "SHARD", "DEVICE", "STATE", "FAILED ATTEMPTS", "ASKED", "BY", "ERROR")
	for i := range *list {
		r := &(*list)[i]
		device := "all"
		if r.Device != nil {
			device = *r.Device
		}
		state := cli.Cell{Value: r.State}
		if r.State == "failed" {
			state.Color = cli.Red
		}
		t.Row(r.ID, r.Kind, r.Shard, device, state, r.Attempts, r.At.Format(time.RFC3339), r.By, requestError(r))
	}
	return out.Table(t)
}

// requestError is why the last attempt failed, "" if it did not.
func requestError(r *store.RequestStatus) string {
	var result struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(r.Result, &result) // none, or of one that succeeded
	return result.Error
}
