"""Data sets in the layouts that people have: COCO's, Roboflow's, YOLO's, Pascal VOC's and labelme's."""
