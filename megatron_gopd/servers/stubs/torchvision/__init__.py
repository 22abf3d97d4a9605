from _stand_in import stand_in

stand_in("torchvision", "0.29.1")
