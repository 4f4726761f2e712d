package fleet

import (
	"math"
	"strconv"
	"time"
)

// course is a closed track of some 30 km with wiggles. All vehicles of a run
// drive on it, round and round.
type course struct {
	latitude, longitude float64    // of its middle
	radius              float64    // metres
	wiggle              [3]float64 // phases
	length              float64    // metres round the circle that the wiggles follow
	cosLat              float64
}

const metresPerDegree = 111_194.9

func newCourse(seed uint64) course {
	r := func(i uint64) float64 { return uniform(hash(seed, i, 0, saltCourse)) }
	c := course{
		latitude:  42.0 + 5*r(0),
		longitude: 1.0 + 15*r(1),
		radius:    4000 + 1500*r(2),
	}
	for i := range c.wiggle {
		c.wiggle[i] = 2 * math.Pi * r(uint64(3+i))
	}
	c.length = 2 * math.Pi * c.radius
	c.cosLat = math.Cos(c.latitude * math.Pi / 180)
	return c
}

// fix is a place on the course with what a receiver says about it.
type fix struct {
	latitude, longitude, altitude float64
	heading, speed                float64 // degrees, km/h
	satellites                    int
}

// at returns the place after some metres of the course, driven at pace metres a
// second along the middle circle.
func (c *course) at(metres, pace float64) fix {
	angle := 2 * math.Pi * math.Mod(metres, c.length) / c.length
	sin, cos := math.Sincos(angle)
	s3, c3 := math.Sincos(3*angle + c.wiggle[0])
	s7, c7 := math.Sincos(7*angle + c.wiggle[1])
	// Radius and its change along the angle give place, heading and speed.
	r := c.radius * (1 + 0.2*s3 + 0.06*s7)
	dr := c.radius * (0.6*c3 + 0.42*c7)
	east, north := r*sin, r*cos
	dEast, dNorth := dr*sin+r*cos, dr*cos-r*sin
	heading := math.Atan2(dEast, dNorth) * 180 / math.Pi
	if heading < 0 {
		heading += 360
	}
	return fix{
		latitude:   roundTo(c.latitude+north/metresPerDegree, 1e7),
		longitude:  roundTo(c.longitude+east/(metresPerDegree*c.cosLat), 1e7),
		altitude:   math.Round(300 + 120*s3 + 20*s7),
		heading:    math.Floor(heading),
		speed:      math.Round(3.6 * pace * math.Hypot(dEast, dNorth) / c.radius),
		satellites: 9 + int(3*(1+s7)),
	}
}

// roundTo rounds to the units a tracker has on the wire.
func roundTo(x, units float64) float64 { return math.Round(x*units) / units }

type ignition bool

const (
	ignitionOn  ignition = true
	ignitionOff ignition = false
)

// SeqAttribute is the attribute in which each simulated record carries its
// number on the device, so that a reader of the tables can judge order and
// doubles without the send log.
const SeqAttribute = "65001"

// message returns the record a tracker makes of a fix. Attributes carry Teltonika's
// IO ids: 239 ignition, 240 movement, 21 GSM signal, 66 external voltage (mV),
// 16 odometer (m), 78 iButton (eight bytes), 385 beacons (variable length).
func (f fix) message(device string, us int64, seq int, odometer int64, on ignition) Message {
	r := hash(uint64(us), uint64(seq), uint64(odometer), saltRecord)
	number := NumberAttribute
	var lit, moving float64
	if on {
		lit = 1
	}
	if f.speed > 0 {
		moving = 1
	}
	// In the order in which JavaScript prints them, which saves a sort.
	attributes := make([]Attribute, 0, 8)
	attributes = append(
		attributes,
		number("16", float64(odometer)),
		number("21", float64(1+r%5)),
		number("66", 11_800+2_400*lit+float64(r>>8%300)),
	)
	kind := r >> 32 % 20
	if kind == 1 || kind == 2 {
		attributes = append(attributes, BigIntAttribute("78", strconv.FormatUint(mix(r)|1<<62, 10)))
	}
	attributes = append(attributes, number("239", lit), number("240", moving))
	switch kind {
	case 3, 4:
		attributes = append(attributes, BytesAttribute("385", beacon(r)))
	case 5:
		attributes = append(attributes, LegacyBytesAttribute("385", beacon(r)))
	}
	attributes = append(attributes, number(SeqAttribute, float64(seq)))
	codec := "8E"
	switch kind {
	case 0:
		codec = "16"
		attributes = append(attributes, number("__generation_type", float64(r>>40%8)))
	case 1, 2:
		codec = "8"
	}
	return Message{
		DeviceID: device, Codec: codec, Time: time.UnixMicro(us).UTC(),
		Latitude: f.latitude, Longitude: f.longitude, Altitude: f.altitude,
		Angle: f.heading, Speed: f.speed, Satellites: f.satellites,
		Attributes: attributes,
	}
}

// beacon returns some bytes, as the variable-length part of codec 8E holds them.
func beacon(r uint64) []byte {
	b := make([]byte, 1+r%24)
	for i := range b {
		b[i] = byte(mix(r + uint64(i)))
	}
	return b
}
